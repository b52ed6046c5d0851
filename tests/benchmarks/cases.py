"""The benchmarks by name; each has one case or more.

A benchmark is imported when it is asked for: a machine that runs one need not have what the others need.
"""

from __future__ import annotations

import importlib
import importlib.util

from tests.benchmarks.case import Case

PLACES = {
    "improve": "pairs.IMPROVE",
    "warmup": "pairs.WARMUP",
    "memory": "pairs.MEMORY",
    "memory-formula": "memory.CASES",
    "optimizer": "optimizer.CASES",
    "locate": "locate.CASES",
    "token-rewards": "rewards.CASES",
    "sample": "sample.CASES",
    "delta": "delta.CASES",
    "ranks": "ranks.CASES",
    "trainers": "trainers.CASES",
    "job": "job.CASES",
    "transfers": "transfers.CASES",
    "transfers-10gb": "transfers.HUGE_CASES",
    "merged": "merged.CASES",
    "service": "service.CASES",
    "streams": "streams.CASES",
    "pages": "pages.CASES",
    "recovery": "recovery.CASES",
    "bookkeeping": "bookkeeping.CASES",
    "effective": "effective.CASES",
    "overhead": "overhead.CASES",
    "due": "due.CASES",
    "away": "away.CASES",
    "pause": "pause.CASES",
}
"""Where each has its cases: a module of this package, and a name in it."""

NAMED = {"transfers-10gb", "recovery", "effective", "away", "pause"}
"""Those that run only where they are named: they take the disk, or wait, for minutes."""

if importlib.util.find_spec("vllm"):
    PLACES["sample-vllm"] = "sample_vllm.CASES"


def cases_of(name: str) -> tuple[Case, ...]:
    """A benchmark's cases, in the order of their numbers."""
    module, _, attribute = PLACES[name].partition(".")
    found: tuple[Case, ...] = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
    return found
