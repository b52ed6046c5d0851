"""One side of one benchmark, in this process: python -m tests.benchmarks NAME ours|rival."""

from __future__ import annotations

import sys

from tests.benchmarks.cases import CASES

name, side = sys.argv[1:]
print(getattr(CASES[name], side)())
