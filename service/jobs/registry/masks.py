"""Masks that a job takes over, instead of locating its own: those that an earlier job of the same owner trained in."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from allo_engine.rounds import kind_of, round_of
from service.jobs import repository
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Artifact, Job

MASKS = "masks"
"""What the request's field, the job's source and the output of stage `locate` are called alike."""

_UNFIT = "invalid_masks"


def find_masks(session: Session, owner: str, name: str) -> list[Any]:
    """The files of the masks, each as [path, sha256, bytes]; `name` is a job's id, or that of any file of the masks. A
    job that located anew in each round gives those of its last, which its aligned model was made with.

    Raises NotFound, or InvalidRequest for a job that has none and for a file of something else.
    """
    job = repository.job(session, owner, name)
    if job is not None:
        return _of_job(session, job)
    artifact = repository.artifact(session, owner, name)
    if artifact is None:
        raise NotFound(f"No job and no masks {name!r}.", MASKS, "masks_not_found")
    return _of_artifact(session, artifact)


def _of_job(session: Session, job: Job) -> list[Any]:
    if MASKS in job.sources:  # it took them from another job itself
        return job.sources[MASKS]
    located = [stage for stage in repository.stages(session, [job.id]) if kind_of(stage.name) == "locate"]
    if not located:
        raise InvalidRequest(
            f"Job {job.id} is of method {job.method['type']}, which makes no masks: name a job of method allo, or "
            "leave masks out to locate them here.",
            MASKS,
            _UNFIT,
        )
    last = max(located, key=lambda stage: round_of(stage.name))
    if last.status is not StageStatus.SUCCEEDED:
        earlier = "" if last is located[0] else "name a file that locate wrote in an earlier round, "
        raise InvalidRequest(
            f"Job {job.id} has no masks yet, its stage {last.name} is {last.status.value}: name it once that "
            f"stage has succeeded (retry the job if it failed or was cancelled), {earlier}or leave masks out to locate "
            "them here.",
            MASKS,
            _UNFIT,
        )
    return _files(session, last.id)


def _of_artifact(session: Session, artifact: Artifact) -> list[Any]:
    if artifact.output != MASKS:
        raise InvalidRequest(
            f"Artifact {artifact.id} is a file of {artifact.output!r}, not of 'masks': name a file that stage locate "
            "wrote, or its job.",
            MASKS,
            _UNFIT,
        )
    return _files(session, artifact.stage_id)


def _files(session: Session, stage_id: str) -> list[Any]:
    stage = repository.stage(session, stage_id)
    if stage is not None and stage.let_go is not None:
        raise InvalidRequest(
            f"The masks of job {stage.job_id} were let go, for the service keeps what is on the way to a result for a "
            "time: name a later job, or leave masks out to locate them here.",
            MASKS,
            _UNFIT,
        )
    rows = repository.artifacts(session, [stage_id])
    return [[row.path, row.sha256, row.bytes] for row in rows if row.output == MASKS]
