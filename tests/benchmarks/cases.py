"""The benchmarks by name; each has one case or more."""

from __future__ import annotations

import importlib.util

from tests.benchmarks import (
    away,
    bookkeeping,
    delta,
    due,
    effective,
    job,
    locate,
    memory,
    merged,
    optimizer,
    overhead,
    pages,
    pairs,
    pause,
    ranks,
    recovery,
    rewards,
    sample,
    sample_vllm,
    service,
    streams,
    trainers,
    transfers,
)
from tests.benchmarks.case import Case

CASES: dict[str, tuple[Case, ...]] = {
    "improve": pairs.IMPROVE,
    "warmup": pairs.WARMUP,
    "memory": pairs.MEMORY,
    "memory-formula": memory.CASES,
    "optimizer": optimizer.CASES,
    "locate": locate.CASES,
    "token-rewards": rewards.CASES,
    "sample": sample.CASES,
    "delta": delta.CASES,
    "ranks": ranks.CASES,
    "trainers": trainers.CASES,
    "job": job.CASES,
    "transfers": transfers.CASES,
    "transfers-10gb": transfers.HUGE_CASES,
    "merged": merged.CASES,
    "service": service.CASES,
    "streams": streams.CASES,
    "pages": pages.CASES,
    "recovery": recovery.CASES,
    "bookkeeping": bookkeeping.CASES,
    "effective": effective.CASES,
    "overhead": overhead.CASES,
    "due": due.CASES,
    "away": away.CASES,
    "pause": pause.CASES,
}

NAMED = {"transfers-10gb", "recovery", "effective", "away", "pause"}
"""Those that run only where they are named: they take the disk, or wait, for minutes."""

if importlib.util.find_spec("vllm"):
    CASES["sample-vllm"] = sample_vllm.CASES
