"""Whether a model can be trained: python -m allo_engine.model FOLDER (see probe.py)."""

from __future__ import annotations

import sys
from pathlib import Path

from allo_engine.forks import leave
from allo_engine.importing import loading

with loading():
    from allo_engine.model.probe import main

main(Path(sys.argv[1]))
leave(0)
