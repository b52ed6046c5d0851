"""A program for a warm process that says which devices it sees, and whether anything had asked before.

python -m tests.integration.worker.asking_engine FILE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from allo_engine.forks import forked_well as well

ASKED: list[str | None] = []


def preload() -> None:
    """torch is imported with this."""


def forked_well() -> bool:
    ASKED.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return well()


def main(arguments: list[str]) -> int:
    before = torch.cuda.is_initialized()
    seen = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    said = {"asked": ASKED, "torch asked before": before, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    Path(arguments[0]).write_text(json.dumps(said | ({"seen": len(seen)} if seen else {})))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
