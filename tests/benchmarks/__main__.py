"""One side of one benchmark, in this process: python -m tests.benchmarks NAME NUMBER ours|rival."""

from __future__ import annotations

import json
import sys

from tests.benchmarks.cases import CASES

name, number, side = sys.argv[1:]
print(json.dumps(getattr(CASES[name][int(number)], side)()))
