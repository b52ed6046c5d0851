"""What a job will take, before it is submitted: the body of a submit, and no job is made."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request

from allo_engine.estimate.price import Band
from service.api import render
from service.api.context import Context, Parts, Reader, is_json
from service.api.schemas import CreateJob, CreateSweep
from service.jobs.errors import Unavailable
from service.jobs.forecast.counting import Works
from service.jobs.forecast.foresight import (
    Past,
    Plan,
    StageForesight,
    Taking,
    foresee,
    notes,
    rates_to_try,
    told,
    total,
)
from service.jobs.running.placement import Offer
from service.jobs.submission import Sender
from service.jobs.sweeping import sweeps
from service.jobs.sweeping.points import Point
from service.jobs.tables import ApiKey

router = APIRouter(prefix="/fine_tuning/jobs/estimate")

WAIT_SECONDS = 240.0
"""How long a request waits for a count, and for those before it."""


@router.post("", dependencies=[Depends(is_json)])
async def read(request: Request, parts: Parts, key: Reader, body: CreateJob) -> dict[str, Any]:
    """What a job would do: its stages, tokens, time, memory and disk, what is there already, and who could run it.

    What a submit refuses, this refuses with the same error. Whoever may read may ask. The names of workers are shown to
    admins. Seconds are those of the best worker for each stage, one stage after another, with nothing else under way.
    """
    return await estimated(request, parts, key, body)


async def estimated(request: Request, parts: Context, key: ApiKey, body: CreateJob) -> dict[str, Any]:
    """The answer. Raises what a submit raises; InvalidRequest where the job would fail, and Unavailable."""

    def plan() -> Plan:
        offers = parts.offers()
        return foresee(parts.database, parts.store, body.asked(), sender_of(parts, key), offers)

    planned = await to_thread.run_sync(plan, limiter=parts.readers)
    asked = planned.question()
    works = {} if asked is None else await _counted(parts.counts.ask(asked))
    request.state.audited = True  # it changed nothing
    return _shown(planned, told(planned, works), "admin" in key.scopes)


async def estimated_sweep(request: Request, parts: Context, key: ApiKey, body: CreateSweep) -> dict[str, Any]:
    """The same for a sweep: what all of its points take, of stages that several share one."""

    def plan() -> list[tuple[Point, Plan]]:
        offers = parts.offers()
        sender = sender_of(parts, key)
        return sweeps.foresee(parts.database, parts.store, body.asked(), body.sweep, sender, offers)

    planned = await to_thread.run_sync(plan, limiter=parts.readers)
    until = time.monotonic() + WAIT_SECONDS
    found = []
    for point, one in planned:  # in turn: the owner's other questions are not kept waiting
        asked = one.question()
        works = {} if asked is None else await _counted(parts.counts.ask(asked), until - time.monotonic())
        found.append((point, one, told(one, works)))
    request.state.audited = True
    return _shown_sweep(found)


def sender_of(parts: Context, key: ApiKey) -> Sender:
    """Whose key it is, and what is allowed."""
    settings = parts.settings
    limits = (settings.max_active_jobs, settings.teacher_hosts, settings.max_owner_bytes, settings.trackers)
    return Sender(key.owner, *limits, admin="admin" in key.scopes)


async def _counted(count: Future[Works], seconds: float = WAIT_SECONDS) -> Works:
    """The count, without a thread that waits for it. Raises Unavailable where it takes long: it goes on."""
    try:
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(count)), seconds)
    except TimeoutError:
        raise Unavailable("The job is still being counted, behind others: ask again in a while.") from None


def _shown(plan: Plan, stages: Sequence[StageForesight], names: bool) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.estimate",
        **_named(plan),
        "stages": [_stage(stage, plan.offers, names) for stage in stages],
        **_taking(total(stages)),
        "past": _past(plan.past),
        "notes": [*notes(plan, stages), *rates_to_try(plan, stages)],
    }


def _shown_sweep(points: Sequence[tuple[Point, Plan, list[StageForesight]]]) -> dict[str, Any]:
    (_, first, _), *_ = points
    return {
        "object": "fine_tuning.sweep.estimate",
        **_named(first),
        "points": [
            {
                "point": dict(point),
                "computes": [stage.name for stage in stages if stage.reused_from is None],
                **_taking(total(stages)),
            }
            for point, _, stages in points
        ],
        **_taking(total([stage for _, _, stages in points for stage in stages])),
        "past": _past(first.past),
        "notes": list(dict.fromkeys(note for _, plan, stages in points for note in notes(plan, stages))),
    }


def _named(plan: Plan) -> dict[str, Any]:
    """What the job is of."""
    new = plan.admitted.new
    return {
        "model": new.model,
        "training_file": new.training_file,
        "validation_file": new.validation_file,
        "method": new.method,
    }


def _stage(stage: StageForesight, offers: Mapping[str, Offer], names: bool) -> dict[str, Any]:
    return {
        "name": stage.name,
        **_taking(stage.taking),
        "reused": stage.reused_from is not None,
        "reused_from": stage.reused_from,
        "needs": render.needs(stage.needs),
        "workers": _workers({name: offers[name] for name in stage.workers}, names),
        "missing": stage.missing or None,
    }


def _taking(taking: Taking | None) -> dict[str, Any]:
    if taking is None:
        return dict.fromkeys(("tokens", "seconds", "peak_memory_bytes", "disk_bytes"))
    return {**taking.write(), "seconds": None if taking.seconds is None else _band(taking.seconds)}


def _band(band: Band) -> dict[str, float]:
    return {name: round(seconds, 1) for name, seconds in asdict(band).items()}


def _workers(able: Mapping[str, Offer], names: bool) -> list[dict[str, Any]]:
    """The workers by their kinds; who they are, admins alone learn, as from GET /workers."""
    kinds = defaultdict[tuple[str, bool], list[str]](list)
    for name, offer in able.items():
        kinds[_kind(offer), offer.calibration is not None].append(name)
    return [
        {"kind": kind, "count": len(found), "calibrated": calibrated, "names": found if names else None}
        for (kind, calibrated), found in kinds.items()
    ]


def _kind(offer: Offer) -> str:
    """`2 × NVIDIA H100, 80 GiB each`, or `8 cores, 62 GiB`."""
    if not offer.devices:
        return f"{offer.cores} cores, {offer.host_bytes / 2**30:.0f} GiB"
    kinds = " and ".join(dict.fromkeys(device.kind for device in offer.devices))
    known = [device.bytes for device in offer.devices if device.bytes]
    memory = f", {min(known) / 2**30:.0f} GiB" if known else ""
    return f"{len(offer.devices)} × {kinds}{memory}{' each' if memory and len(offer.devices) > 1 else ''}"


def _past(past: Past) -> dict[str, Any]:
    found = asdict(past)
    for ratios in filter(None, (found["seconds_ratio"], found["memory_ratio"])):
        ratios.update({name: round(ratio, 3) for name, ratio in ratios.items()})
    return found
