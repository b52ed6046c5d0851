"""How soon a paused job's device is free: the real engine and a real small model, by production's settings, paused at
random moments, those included in which the stage begins, saves or reads.

A stage is given back once its processes are gone and its checkpoint is on the disk: that is waited for.
"""

from __future__ import annotations

import random
import time
from statistics import median

from tests.benchmarks.case import Case, Figures, Side
from tests.benchmarks.effective import training
from tests.integration.worker.house import House
from tests.waiting import until

PAUSES, DUE = 10, 15.0
LATEST = 20.0
"""Seconds behind a claim, at most: it has begun to compute by then."""

SAMPLE = {"n": 16, "max_response_tokens": 1024, "temperature": 1.0}
"""Responses so long that hardly any has ended by then."""


def trains() -> Figures:
    """All weights are trained: a checkpoint is 1.6 GB."""
    with training() as one:
        return _paused(one.house, one.job, "sft")


def samples() -> Figures:
    """Responses are drawn, each of which takes minutes."""
    with training() as one:
        one.house.cancel(one.job)
        return _paused(one.house, one.house.submit(method="dpo", stages={"sft": None, "sample": SAMPLE}), "sample")


def _paused(house: House, job: str, name: str) -> Figures:
    moments, took = random.Random(0), list[float]()
    for _ in range(PAUSES):
        until(lambda: house.stage(job, name).status == "running")
        time.sleep(moments.uniform(0, LATEST))
        began = time.monotonic()
        house.pause(job)
        until(lambda: house.stage(job, name).status != "running")
        took.append(time.monotonic() - began)
        assert house.stage(job, name).status == "waiting", house.stage(job, name).error
        house.resume(job)
    return {"median": median(took), "most": max(took)}


def due() -> Figures:
    return {"median": DUE, "most": DUE}


def _case(what: str, ours: Side) -> Case:
    measure = f"a pause to a free device, the longest of {PAUSES}, s, where {what}"
    return Case(measure, ours, due, lambda: "what is due", 1, False, f"a grace of {DUE:g} s", "most")


CASES = (_case("all weights are trained", trains), _case("long responses are drawn", samples))
