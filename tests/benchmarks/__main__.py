"""One side of one benchmark, in this process: python -m tests.benchmarks NAME NUMBER ours|rival."""

from __future__ import annotations

import json
import sys

from tests.benchmarks.cases import cases_of

name, number, side = sys.argv[1:]
print(json.dumps(getattr(cases_of(name)[int(number)], side)()))
