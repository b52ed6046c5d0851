"""Questions to programs that run beside this process, so that it never loads what they need."""

from __future__ import annotations

import os


def alone(**more: str) -> dict[str, str]:
    """The environment of a child of the engine that reads what is on this machine, and computes on its processor."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def last_words(errors: str, otherwise: str = "it said nothing") -> str:
    """The last line of what a child wrote to its standard error: the error itself, below a traceback."""
    return (errors.strip().splitlines() or [otherwise])[-1]
