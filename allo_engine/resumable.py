"""Which files of a stage's work folder another machine needs to go on from its newest checkpoint. Free of torch.

What is being written, and what is made anew whenever it is wanted, is not among them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CHECKPOINT = re.compile(r"step-\d{8}-(?P<sha256>[0-9a-f]{64})\.safetensors")
"""The name of a checkpoint, which holds its content's sha256 (see training/resuming.py)."""

_SERIES = {"best", "last"}
"""Folders of checkpoints that are all needed: what a validation chose, and what a mean is taken of."""

_PASSING = re.compile(r"aside|merged|delta|outputs|meeting-.*|\..*|.*\.(tmp|new)|.*-(journal|wal|shm)")


def resumable(work: Path) -> list[Path]:
    """Their paths inside the folder, the newest checkpoint first: what is found after it is of its time or younger."""
    found = [path for folder in _folders(work) for path in _files(folder)]
    found.sort(key=lambda path: (CHECKPOINT.fullmatch(path.name) is None, path))
    return [path.relative_to(work) for path in found]


def _folders(work: Path) -> Iterator[Path]:
    for folder, within, _ in os.walk(work):
        within[:] = sorted(name for name in within if not _PASSING.fullmatch(name))
        yield Path(folder)


def _files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and not _PASSING.fullmatch(path.name)]
    checkpoints = sorted(path for path in files if CHECKPOINT.fullmatch(path.name))
    older = set() if folder.name in _SERIES else set(checkpoints[:-1])
    return [path for path in files if path not in older]
