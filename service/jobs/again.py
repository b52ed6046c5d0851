"""What a job that is retried keeps, and what of it is computed anew."""

from __future__ import annotations

from collections.abc import Sequence

from service.jobs.errors import Conflict, InvalidRequest
from service.jobs.lifecycle import StageStatus, move
from service.jobs.presence import is_there
from service.jobs.progression import needs
from service.jobs.tables import Job, Stage
from service.storage.store import Store


def check_sources(store: Store, job: Job, stages: Sequence[Stage]) -> None:
    """Raises Conflict where something that the job goes on from was deleted."""
    began = (sha256 for files in job.sources.values() for _, sha256, _ in files)
    erased = [stage.name for stage in stages if _erased(stage)]
    if erased or not all(is_there(store, sha256) for sha256 in began):
        what = f"what stage {erased[0]} made" if erased else "a file or model that it began with"
        raise Conflict(f"The job cannot go on: {what} was deleted or damaged. Bring it again, or submit the job anew.")


def following(stages: Sequence[Stage], start: str) -> list[Stage]:
    """The stage of this name and all that read what it makes. Raises InvalidRequest where there is none."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.name == start or found.keys() & needs(stage):
            found[stage.name] = stage
    if not found:
        names = ", ".join(stage.name for stage in stages)
        raise InvalidRequest(f"The job has no stage {start!r:.70}: its stages are {names}.", "from", "unknown_stage")
    return list(found.values())


def _erased(stage: Stage) -> bool:
    """Whether its owner deleted what it made; what was let go is computed again."""
    return stage.status is StageStatus.SUCCEEDED and stage.digest is None and stage.let_go is None


def reset(stage: Stage, anew: bool) -> None:
    """As it was before it ever ran, for a stage that has yet to run, and one whose result was let go; `anew`, whatever
    came of it, and its result is not taken over from another."""
    stage.ran_seconds = 0.0
    stage.anew += anew
    lost, stage.let_go = anew or stage.let_go is not None, None
    if lost:
        stage.digest = stage.reused_from = stage.started_at = None
        stage.metrics = {}
    if lost or stage.status in (StageStatus.FAILED, StageStatus.CANCELLED):
        stage.status = move(stage.status, StageStatus.WAITING)
        stage.attempt, stage.fruitless, stage.error, stage.finished_at = 0, 0, None, None
        stage.step = stage.total = stage.resumed_step = stage.saved_step = None
