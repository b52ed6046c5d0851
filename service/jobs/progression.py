"""How a job goes on: which stages become ready, which are reused, when the job has ended.

Everything here runs inside a verb's transaction, with the job's row locked.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy.orm import Session

from allo_engine.pipeline import MODELS, PlannedStage, digest, model_source
from allo_engine.rounds import kind_of
from allo_engine.source import stage_code
from service.jobs import repository
from service.jobs.access import webhooks
from service.jobs.clean import clean_json, clean_text
from service.jobs.ids import new_id
from service.jobs.lifecycle import JOB_ENDED, STAGE_ENDED, JobStatus, StageStatus, move
from service.jobs.presence import Contents, is_there
from service.jobs.repository import told, tracked
from service.jobs.tables import Artifact, Event, File, Job, Model, Stage

InputFiles = tuple[tuple[str, str, int], ...]
"""The files of one input: (relative path, sha256, bytes) of each."""

Level = Literal["info", "warn", "error"]


def advance(session: Session, store: Contents, job: Job, now: int) -> None:
    """Readies every stage whose needs have succeeded, reuses what was computed before, and ends a job that is done.

    Stages come in an order in which they can run, so one pass also carries a chain of reused stages through.
    """
    stages = repository.stages(session, [job.id])
    if not stopping(job) and job.status is not JobStatus.PAUSED:
        by_name = {stage.name: stage for stage in stages}
        for stage in stages:
            if stage.status is StageStatus.WAITING and all(
                by_name[name].status is StageStatus.SUCCEEDED for name in needs(stage)
            ):
                _ready(session, store, job, stage, now)
    _settle(session, job, stages, now)


def needs(stage: Stage) -> tuple[str, ...]:
    """The stages whose outputs this one reads."""
    return tuple(dict.fromkeys(source.split(".")[0] for source in stage.inputs.values() if "." in source))


def stopping(job: Job) -> bool:
    """Whether what still runs of the job should end."""
    return job.cancel_requested or job.status in JOB_ENDED


def name_result(session: Session, job: Job, stage: Stage) -> dict[str, InputFiles]:
    """Gives the stage the digest that it has with this process's engine, and returns the files of each input.

    The stage notes which code of it that is: only a worker that runs the same may claim it (see `attempts.claim`), so
    that a result never bears the name of code that did not compute it.
    """
    made = repository.stage_ids(session, job.id) if needs(stage) else {}
    files = _input_files(session, job.sources, made, stage.inputs)
    stage.code = stage_code(kind_of(stage.name))
    found = _digest(stage.name, stage.config, files)
    if stage.digest != found:  # what was saved of another result is no way of this one
        stage.digest, stage.saved_step = found, None
    stage.line = line_of(job, stage)
    return files


def line_of(job: Job, stage: Stage) -> str:
    """The line that the stage waits in: of stages that the dispatcher cannot tell apart but by their age."""
    alike = json.dumps([job.owner, job.priority, stage.code, stage.needs], sort_keys=True)
    return hashlib.sha256(alike.encode()).hexdigest()[:16]


def reuse(session: Session, store: Contents, job: Job, stage: Stage, now: int) -> bool:
    """Takes over the result of an earlier stage of the owner's with the same digest, where all of it still exists;
    never for a stage that is to be computed anew."""
    assert stage.digest is not None
    if stage.anew:
        return False
    found = _earlier_result(session, store, job.owner, stage.digest)
    if found is not None:
        _take_over(session, job, stage, *found, now)
    return found is not None


def reusable(
    session: Session, store: Contents, owner: str, sources: Mapping[str, Sequence[Any]], planned: Sequence[PlannedStage]
) -> dict[str, Stage]:
    """The earlier stages whose results a job would take over at once, by the names of its own; what reads a result that
    is yet to be computed is not among them, for nobody knows that result."""
    found: dict[str, Stage] = {}
    for stage in planned:
        if all(name in found for name in stage.needs()):
            made = {name: earlier.id for name, earlier in found.items()}
            files = _input_files(session, sources, made, stage.inputs)
            digest_ = _digest(stage.name, stage.config.model_dump(mode="json"), files)
            result = _earlier_result(session, store, owner, digest_)
            if result is not None:
                found[stage.name] = result[0]
    return found


def complete(session: Session, job: Job, stage: Stage, now: int, message: str) -> None:
    """What follows from a success: the event, and the name under which a trained checkpoint can be used."""
    add_event(session, job, now, "info", message, {"stage": stage.name, "metrics": stage.metrics})
    if kind_of(stage.name) in MODELS:
        _register(session, job, checkpoint_model(job, stage.name), stage, now)


def settle(session: Session, job: Job, now: int) -> None:
    """Ends the job where nothing of it is left to run."""
    _settle(session, job, repository.stages(session, [job.id]), now)


def _settle(session: Session, job: Job, stages: Sequence[Stage], now: int) -> None:
    if job.status in JOB_ENDED or any(stage.status not in STAGE_ENDED for stage in stages):
        return
    if job.cancel_requested:
        end(session, job, JobStatus.CANCELLED, now, "info", "The job was cancelled.")
    else:
        _succeed(session, job, stages, now)


def end(session: Session, job: Job, status: JobStatus, now: int, level: Level, message: str) -> None:
    """The job's last change: whatever of it has not started never will."""
    cancel_unstarted(session, job, now)
    job.status, job.finished_at = move(job.status, status), now
    add_event(session, job, now, level, message, {"status": status.value})
    webhooks.tell(session, job, now)
    tracked.hurry(session, job.id, now)


def hold_unstarted(session: Session, job: Job) -> None:
    """Lets every stage wait that no worker has claimed: whoever was rung for one comes too late."""
    for stage in repository.stages(session, [job.id]):
        if stage.status in (StageStatus.READY, StageStatus.DISPATCHED):
            stage.status = move(stage.status, StageStatus.WAITING)
            stage.worker = stage.devices = None
    session.flush()


def cancel_unstarted(session: Session, job: Job, now: int) -> None:
    """Cancels every stage that no worker has claimed."""
    for stage in repository.stages(session, [job.id]):
        if stage.status in (StageStatus.WAITING, StageStatus.READY, StageStatus.DISPATCHED):
            stage.status, stage.finished_at = move(stage.status, StageStatus.CANCELLED), now
    session.flush()


def add_event(
    session: Session,
    job: Job,
    now: int,
    level: Level,
    message: str,
    data: Mapping[str, Any],
    kind: Literal["message", "metrics"] = "message",
) -> None:
    """Writes the next event: the job's row is locked, so its count gives a number without a gap. Its time is never
    earlier than that of the one before, whoever's clock that was."""
    time = told.no_earlier(now, job.id, job.event_count)
    job.event_count += 1
    session.add(
        Event(
            id=new_id("ftevent"),
            job_id=job.id,
            seq=job.event_count,
            created_at=time,
            level=level,
            type=kind,
            message=clean_text(message),
            data=clean_json(data),
        )
    )


def fine_tuned_name(job: Job) -> str:
    """`ft:<base>:<suffix or owner>:<end of the job's id>`; a model that was itself made here keeps its first base."""
    base = job.model.split(":")[1] if job.model.startswith("ft:") else job.model
    return f"ft:{base}:{job.suffix or job.owner}:{job.id[-8:]}"


def checkpoint_model(job: Job, stage: str) -> str:
    """The name of the model as it stood after `stage`."""
    return f"{fine_tuned_name(job)}:ckpt-{stage}"


def _ready(session: Session, store: Contents, job: Job, stage: Stage, now: int) -> None:
    name_result(session, job, stage)
    if not reuse(session, store, job, stage, now):
        stage.status = move(stage.status, StageStatus.READY)
    session.flush()


def _digest(stage: str, config: Mapping[str, Any], inputs: Mapping[str, InputFiles]) -> str:
    hashes = {name: [(path, sha256) for path, sha256, _ in found] for name, found in inputs.items()}
    return digest(kind_of(stage), config, hashes)


def _earlier_result(
    session: Session, store: Contents, owner: str, digest_: str
) -> tuple[Stage, Sequence[Artifact]] | None:
    for earlier in repository.succeeded_stages(session, owner, digest_):
        artifacts = repository.artifacts(session, [earlier.id])
        if all(is_there(store, artifact.sha256) for artifact in artifacts):
            return earlier, artifacts
    return None


def _input_files(
    session: Session, sources: Mapping[str, Sequence[Any]], made: Mapping[str, str], inputs: Mapping[str, str]
) -> dict[str, InputFiles]:
    """The files of each input: of the job's sources, or, found by one query, what stages made, whose ids are `made`."""
    outputs = {name: source.split(".") for name, source in inputs.items() if "." in source}
    found = defaultdict[tuple[str, str], list[Any]](list)
    for row in repository.artifacts(session, [made[stage] for stage, _ in outputs.values()]) if outputs else ():
        found[row.stage_id, row.output].append((row.path, row.sha256, row.bytes))
    files = {name: [tuple(file) for file in sources[source]] for name, source in inputs.items() if name not in outputs}
    files |= {name: found[made[stage], output] for name, (stage, output) in outputs.items()}
    return {name: tuple(sorted(files[name])) for name in inputs}


def _take_over(
    session: Session, job: Job, stage: Stage, earlier: Stage, artifacts: Sequence[Artifact], now: int
) -> None:
    stage.status = move(stage.status, StageStatus.SUCCEEDED)
    stage.reused_from = earlier.reused_from or earlier.id
    stage.metrics, stage.step, stage.total = earlier.metrics, earlier.step, earlier.total
    stage.started_at = stage.finished_at = now
    add_artifacts(session, stage, [(row.output, row.path, row.sha256, row.bytes) for row in artifacts], now)
    complete(session, job, stage, now, f"Stage {stage.name}: reused, nothing of it has changed.")
    session.flush()


def add_artifacts(session: Session, stage: Stage, files: Sequence[tuple[str, str, str, int]], now: int) -> None:
    """Names a stage's files, each (output, path, sha256, bytes)."""
    for output, path, sha256, size in files:
        row = Artifact(id=new_id("art"), stage_id=stage.id, created_at=now)
        row.output, row.path, row.sha256, row.bytes = output, path, sha256, size
        session.add(row)
    session.flush()


def _register(session: Session, job: Job, name: str, stage: Stage, now: int) -> None:
    """Makes the checkpoint of a stage a model."""
    rows = [row for row in repository.artifacts(session, [stage.id]) if row.output == "checkpoint"]
    files = [{"path": row.path, "bytes": row.bytes, "sha256": row.sha256} for row in rows]
    if files:
        base = repository.model_by_name(session, job.model)
        model = Model(id=name, owner=job.owner, created_at=now, job_id=job.id, files=files)
        model.verdict, model.origin = (base.verdict, base.origin) if base else (None, None)
        session.merge(model)


def _succeed(session: Session, job: Job, stages: Sequence[Stage], now: int) -> None:
    by_name = {stage.name: stage for stage in stages}
    last = by_name[model_source(list(by_name)).split(".")[0]]
    job.fine_tuned_model = fine_tuned_name(job)
    _register(session, job, job.fine_tuned_model, last, now)
    if "evaluate" in by_name:
        _publish_report(session, job, by_name["evaluate"], now)
    end(session, job, JobStatus.SUCCEEDED, now, "info", f"The job succeeded: {job.fine_tuned_model}.")


def _publish_report(session: Session, job: Job, stage: Stage, now: int) -> None:
    """Makes what `evaluate` wrote the job's result files, but for the answers in full, which stand beside it."""
    for row in repository.artifacts(session, [stage.id]):
        if row.path == "texts.jsonl":
            continue
        file = File(id=new_id("file"), owner=job.owner, purpose="fine-tune-results", created_at=now)
        file.filename, file.bytes, file.sha256 = f"{job.id}-{row.path.replace('/', '-')}"[-255:], row.bytes, row.sha256
        file.status, file.lines_without_solution = "processed", []
        session.add(file)
        job.result_files = [*job.result_files, file.id]
