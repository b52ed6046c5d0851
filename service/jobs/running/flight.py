"""The stages that are not at rest, and the workers that there are, as the dispatcher and the reaper see them."""

from __future__ import annotations

from dataclasses import dataclass

from allo_engine.needs import UNKNOWN, Needs
from service.jobs.running.placement import Offer


@dataclass(frozen=True)
class Waiting:
    """A stage that is ready or dispatched, at the epoch that a claim must name. Only a worker of its `code` may run
    it. `owner` and `priority` are its job's."""

    stage_id: str
    epoch: int
    needs: Needs = UNKNOWN
    code: str | None = None
    owner: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Placed:
    """A stage that was given to a worker, with these devices of it, and that has not been claimed yet."""

    stage: Waiting
    worker: str | None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """A stage that somebody claimed, and its last sign of life: a `beat` that stands still, by the reaper's own clock,
    is a lease that was lost."""

    stage_id: str
    epoch: int
    beat: int
    needs: Needs = UNKNOWN
    worker: str | None = None
    devices: tuple[str, ...] = ()
    owner: str = ""


@dataclass(frozen=True)
class Host:
    """A registered worker, what it has, and its last sign of life."""

    id: str
    beat: int
    offer: Offer
