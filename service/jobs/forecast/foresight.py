"""What a job will take, told before it is submitted: its stages, what of them is there already, who could run them,
and, from what was counted, tokens, time, memory and disk."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy.orm import Session

from allo_engine.estimate.loads import Place, Work
from allo_engine.estimate.price import Band, StageEstimate, price
from allo_engine.estimate.rates import Calibration
from allo_engine.needs import Needs
from allo_engine.pipeline import warnings
from service.db import Database
from service.jobs.forecast.counting import Question, Works, question
from service.jobs.presence import asked_apart
from service.jobs.progression import reusable
from service.jobs.repository import foreseen
from service.jobs.running.placement import Offer, able, missing, seat
from service.jobs.submission import Admitted, NewJob, Sender, admit, check_limit
from service.storage.store import Store

NOWHERE = Place.of("cpu", 16 * 2**30, False, False)
"""Where there is no worker, tokens and disk are those of a small one."""

_NO_RATES = Calibration(**{field.name: 1e12 for field in fields(Calibration)})
"""What else a price says does not depend on them."""


@dataclass(frozen=True)
class Taking:
    """What a stage takes: None where nobody can say."""

    tokens: int
    seconds: Band | None
    peak_memory_bytes: int | None
    disk_bytes: int

    def write(self) -> dict[str, Any]:
        return asdict(self)


NOTHING = Taking(0, Band(0.0, 0.0, 0.0), 0, 0)
"""What a stage takes whose result is there."""


@dataclass(frozen=True)
class Spread:
    """Of ratios: the middle one, and between what eight of ten lie."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Past:
    """How the owner's latest jobs ended against what was expected of them: what stages took, over what was expected."""

    jobs: int
    stages: int
    seconds_ratio: Spread | None
    memory_ratio: Spread | None


@dataclass(frozen=True)
class StageForesight:
    """A stage: the workers that could run it, best first, or what none has; the stage whose result it takes over; and
    what it takes on the best worker."""

    name: str
    needs: Needs
    workers: tuple[str, ...]
    missing: str
    reused_from: str | None
    taking: Taking | None


@dataclass(frozen=True)
class Plan:
    """A job that could be submitted: what of it is known without counting. `offers` are the living workers'."""

    admitted: Admitted
    offers: Mapping[str, Offer]
    reused: Mapping[str, str]
    workers: Mapping[str, tuple[str, ...]]
    past: Past

    def question(self) -> Question | None:
        """What must be counted of it; None where everything is there, or nobody could count it."""
        left = [stage.name for stage in self.admitted.planned if stage.name not in self.reused]
        best = [self.offers[self.workers[name][0]].place for name in left if self.workers[name]]
        return question(self.admitted, best or [NOWHERE]) if left else None


def foresee(database: Database, store: Store, new: NewJob, sender: Sender, offers: Mapping[str, Offer]) -> Plan:
    """What would come of a submit; nothing is written. Raises whatever the submit would raise."""
    (found,) = foresee_all(database, store, [new], sender, offers)
    return found


def foresee_all(
    database: Database, store: Store, jobs: Sequence[NewJob], sender: Sender, offers: Mapping[str, Offer]
) -> list[Plan]:
    """What would come of submitting all of them at once."""

    def foreseen() -> list[Plan]:
        with database.snapshot() as session:
            now = database.now()
            check_limit(session, sender, now, len(jobs))
            past = _past(session, sender.owner)
            return [_plan(session, store, admit(session, store, new, sender, now), offers, past) for new in jobs]

    return asked_apart(database, foreseen, commits=False)


def _plan(session: Session, store: Store, admitted: Admitted, offers: Mapping[str, Offer], past: Past) -> Plan:
    found = reusable(session, store, admitted.owner, admitted.sources, admitted.planned)
    reused = {name: stage.reused_from or stage.id for name, stage in found.items()}
    workers = {stage.name: _by_merit(admitted.needs[stage.name], offers) for stage in admitted.planned}
    return Plan(admitted, offers, reused, workers, past)


def told(plan: Plan, works: Works) -> list[StageForesight]:
    """The stages in running order, with what was counted of them, if anything was."""
    return [_stage(plan, stage.name, works) for stage in plan.admitted.planned]


def total(stages: Sequence[StageForesight]) -> Taking | None:
    """All of a job's stages, one after another: the most memory of any. None where nobody can say."""
    found = [stage.taking for stage in stages if stage.taking is not None]
    if len(found) < len(stages):
        return None
    bands = [one.seconds for one in found if one.seconds is not None]
    peaks = [one.peak_memory_bytes for one in found if one.peak_memory_bytes is not None]
    return Taking(
        sum(one.tokens for one in found),
        _sum(bands) if len(bands) == len(found) else None,
        max(peaks) if len(peaks) == len(found) else None,
        sum(one.disk_bytes for one in found),
    )


def notes(plan: Plan, stages: Sequence[StageForesight]) -> list[str]:
    """In sentences, what the estimate does not say, and what helps; and what the job may do that it had better not."""
    found = list(warnings(plan.admitted.planned))
    if any(stage.taking is None for stage in stages):
        found.append(
            "The sizes of the model are not known, so that tokens, time and memory are not: `allo models add` with the "
            "same name and folder finds them, where it can."
        )
    found += dict.fromkeys(stage.missing for stage in stages if stage.missing)
    slow = [stage.name for stage in stages if stage.workers and stage.taking and stage.taking.seconds is None]
    if slow:
        found.append(
            f"How long {', '.join(slow)} will take is not known, because no worker that could run it has measured how "
            "fast it is: a worker does once it has rested for a while. `allo workers` shows which have."
        )
    if any(getattr(stage.config, "harness", None) for stage in plan.admitted.planned):
        found.append(
            "What the tasks of lm-evaluation-harness take is in no figure here: the worker alone knows how large they "
            "are. evaluate.harness.limit bounds them."
        )
    found += _of_time(plan.admitted.new.max_seconds, total(stages))
    if not plan.past.stages:
        found.append("No stage of yours that was estimated has ended yet, so that nothing tells how far off this is.")
    return found


def rates_to_try(plan: Plan, stages: Sequence[StageForesight]) -> list[str]:
    """That nobody has chosen the learning rate of what aligns, and what another one takes."""
    new, kinds = plan.admitted.new, [stage.kind for stage in plan.admitted.planned]
    kind = next((kind for kind in ("improve", "warmup") if kind in kinds), None)
    given = [*(new.stages.get(kind or "") or {}), *new.hyperparameters]
    if kind is None or {"learning_rate", "learning_rate_multiplier"} & set(given):
        return []
    first = kinds.index(kind)
    rate = plan.admitted.planned[first].config.model_dump()["learning_rate"]
    left = total(stages[first:])
    takes = f" Each takes some {round(left.seconds.expected)} seconds." if left and left.seconds else ""
    if "sample" in kinds and "beta" not in given:
        takes += (
            f" Where answers are short, try {kind}.beta=0.1,3 with each: in the study of arithmetic 3 gained at rates "
            "at which 0.1 lost."
        )
    return [
        f"No rule finds the best learning rate of {kind}: its default, {rate:g}, is of models of 7 B, and other "
        f"models and shorter runs want others. A sweep over {kind}.learning_rate={rate:g},{3 * rate:g},{10 * rate:g} "
        f"tries three and computes what comes before them once.{takes}"
    ]


def _of_time(limit: int | None, taking: Taking | None) -> list[str]:
    """Whether a job's limit looks too short."""
    if limit is None or taking is None or taking.seconds is None or taking.seconds.high <= limit:
        return []
    expected, high = round(taking.seconds.expected), round(taking.seconds.high)
    will = "will most likely not be done" if expected > limit else "may not be done"
    return [f"The job {will} within max_seconds = {limit}: {expected} seconds are expected, and {high} possible."]


def _by_merit(needs: Needs, offers: Mapping[str, Offer]) -> tuple[str, ...]:
    """The workers that could run a stage: first who is known to be how fast, then as stages are placed."""
    seats = {name: seat(needs, offers[name]) for name in able(needs, offers)}
    merit = {name: (offers[name].calibration is None, found.left) for name, found in seats.items() if found}
    return tuple(sorted(merit, key=lambda name: (*merit[name], name)))


def _stage(plan: Plan, name: str, works: Works) -> StageForesight:
    needs, workers, reused = plan.admitted.needs[name], plan.workers[name], plan.reused.get(name)
    lacks = "" if workers or reused else missing(name, needs, list(plan.offers.values()))
    taking = NOTHING if reused else _taking(plan, name, works)
    return StageForesight(name, needs, workers, lacks, reused, taking)


def _taking(plan: Plan, name: str, works: Works) -> Taking | None:
    if not works:
        return None
    if not plan.workers[name]:
        found = _priced(next(iter(works.values())), _NO_RATES, name)
        return Taking(found.tokens, None, None, found.disk_bytes)
    offer = plan.offers[plan.workers[name][0]]
    rates = offer.calibration
    found = _priced(works[offer.place], rates or _NO_RATES, name)
    return Taking(found.tokens, found.seconds if rates else None, found.peak_memory_bytes, found.disk_bytes)


def _priced(work: Work, rates: Calibration, name: str) -> StageEstimate:
    return next(stage for stage in price(work, rates).stages if stage.name == name)


def _sum(bands: Iterable[Band]) -> Band:
    lows, expected, highs = zip(*((band.low, band.expected, band.high) for band in bands), strict=True)
    return Band(sum(lows), sum(expected), sum(highs))


def _past(session: Session, owner: str) -> Past:
    jobs, seconds, memory = set(), [], []
    for estimate, stage in foreseen.outcomes(session, owner):
        expected, found = estimate.get(stage.name) or {}, stage.metrics
        if expected.get("seconds") and found.get("seconds") and not found.get("resumed"):
            jobs.add(stage.job_id)
            seconds.append(found["seconds"] / expected["seconds"]["expected"])
            if expected.get("peak_memory_bytes") and found.get("peak_memory_bytes"):
                memory.append(found["peak_memory_bytes"] / expected["peak_memory_bytes"])
    return Past(len(jobs), len(seconds), spread(seconds), spread(memory))


def spread(ratios: Sequence[float]) -> Spread | None:
    """The median, and the tenth and ninetieth hundredth: of fewer than ten, the least and the most."""
    if not ratios:
        return None
    ordered = sorted(ratios)
    aside = len(ordered) // 10
    return Spread(statistics.median(ordered), ordered[aside], ordered[-1 - aside])
