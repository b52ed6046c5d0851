"""Of what jobs are made of, run as and leave: files, models, stages, what these wrote and told, and workers."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Double,
    Enum,
    ForeignKey,
    Index,
    SmallInteger,
    String,
    UniqueConstraint,
    case,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base
from service.jobs.lifecycle import JobStatus, StageStatus


def _status(kind: type[StrEnum]) -> Enum:
    """Kept as text, so that a new status needs no migration."""
    return Enum(
        kind, native_enum=False, length=32, values_callable=lambda members: [member.value for member in members]
    )


class File(Base):
    """An uploaded file. A bad one has status `error`, and the blob `report_sha256` names every bad line.

    `form`, `container` and `duplicates` are what was found in it (see datasets/validation.py). Where it is not JSON
    lines of a format of ours, the blob `data_sha256` holds those: jobs read that.
    """

    __tablename__ = "files"
    __table_args__ = (Index(None, "owner", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    format: Mapped[str | None] = mapped_column(String(32))
    rows: Mapped[int | None] = mapped_column(BigInteger)
    form: Mapped[str | None] = mapped_column(String(64))
    container: Mapped[str | None] = mapped_column(String(16))
    duplicates: Mapped[int | None] = mapped_column(BigInteger)
    data_sha256: Mapped[str | None] = mapped_column(String(64))
    data_bytes: Mapped[int | None] = mapped_column(BigInteger)
    lines_without_solution: Mapped[list[int]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(32))
    status_details: Mapped[str | None]
    report_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)

    @property
    def lines(self) -> tuple[str, int]:
        """The blob with the file's lines in a format of ours, and its size: the file itself, or what it became."""
        if self.data_sha256 is None or self.data_bytes is None:
            return self.sha256, self.bytes
        return self.data_sha256, self.data_bytes


class Upload(Base):
    """A file that comes in parts. `part_ids` are those that it was completed with, to file `file_id`; `lifetime` is
    what the file shall have, in seconds."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "owner", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str] = mapped_column(String(255))
    mime_type: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(64))
    lifetime: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(32))
    part_ids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    file_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class UploadPart(Base):
    """A part that has arrived, of an upload that is pending."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Model(Base):
    """A model that jobs can start from and people can download. `files` holds {path, bytes, sha256} for each file.

    Without an owner it is everyone's: a base model that the operator registered. `verdict` is what a probe found of it
    (see verdicts.py), or of the model that its job began with; None where it was registered before there were probes.
    `origin` is where a registered one comes from: {license, source}, as far as it said.
    """

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(String(64), index=True)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Export(Base):
    """A model in another form, made once: `id` is the hash of the model's content, the form and its options.

    `files` holds {path, bytes, sha256} of what was made, `figures` what was found when it was read back, `error`
    {code, message} of one that failed.
    """

    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255), index=True)
    format: Mapped[str] = mapped_column(String(32))
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    inputs: Mapped[dict[str, list[Any]]] = mapped_column(JSON)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    figures: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Job(Base):
    """A job. `method` holds the type, the shorthand as it was given, and every stage's settings in full.

    `sources` holds what comes from outside the job, the model, the uploaded files and the masks of an earlier job, each
    as [path, sha256, bytes] of its files: the job goes on when they are deleted, and stays about the content that it
    was submitted with. `max_seconds` is what its stages may run for, together. `estimate` is what was expected of its
    stages, by their names (see foresight.py), once that was worked out. `sweep_point` holds the settings in which the
    job differs from others of the same `sweep_id`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "owner", "id"),
        Index(None, "owner", "model", "training_file", "id"),
        Index(None, "owner", "sweep_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[JobStatus] = mapped_column(_status(JobStatus), index=True)
    model: Mapped[str] = mapped_column(String(255))
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    corrections_file: Mapped[str | None] = mapped_column(String(64))
    retention_file: Mapped[str | None] = mapped_column(String(64))
    masks: Mapped[str | None] = mapped_column(String(64))
    sources: Mapped[dict[str, list[Any]]] = mapped_column(JSON)
    method: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int] = mapped_column(BigInteger)
    suffix: Mapped[str | None] = mapped_column(String(64))
    user_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    integrations: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    priority: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    max_seconds: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    fine_tuned_model: Mapped[str | None] = mapped_column(String(255))
    result_files: Mapped[list[str]] = mapped_column(JSON)
    cancel_requested: Mapped[bool]
    event_count: Mapped[int] = mapped_column(BigInteger)
    estimate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    sweep_id: Mapped[str | None] = mapped_column(String(64))
    sweep_point: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Stage(Base):
    """A stage of a job. `epoch` is the fencing token: whoever holds an older one changes nothing.

    `needs` is what it must find on a worker (see the engine's needs.py); `worker` and `devices` say where it was placed
    last; `code` is the version of the engine that its digest names, the only one that may compute it. `line` names
    those that wait like it (see `progression.line_of`); None where an older process readied it. `saved_step` is the
    furthest that a checkpoint of it ever was, by its own count, and `fruitless` how many attempts have ended badly
    since. `ran_seconds` is how long its workers have had it, by their own clocks; `anew` counts how often it was asked
    to be computed though its result was there; `attempts` tells of those that have ended, the latest.
    `let_go` is {at, files, bytes} of what it made and the policy did not keep (see retention.py).
    """

    __tablename__ = "stages"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index(None, "status", "line", "job_id", "position"),
        Index(None, "digest"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    position: Mapped[int]
    name: Mapped[str] = mapped_column(String(32))
    status: Mapped[StageStatus] = mapped_column(_status(StageStatus))
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    inputs: Mapped[dict[str, str]] = mapped_column(JSON)
    digest: Mapped[str | None] = mapped_column(String(64))
    code: Mapped[str | None] = mapped_column(String(64))
    needs: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    line: Mapped[str | None] = mapped_column(String(16))
    reused_from: Mapped[str | None] = mapped_column(String(64))
    step: Mapped[int | None] = mapped_column(BigInteger)
    total: Mapped[int | None] = mapped_column(BigInteger)
    resumed_step: Mapped[int | None] = mapped_column(BigInteger)
    saved_step: Mapped[int | None] = mapped_column(BigInteger)
    ran_seconds: Mapped[float] = mapped_column(Double, default=0.0, server_default="0")
    anew: Mapped[int] = mapped_column(default=0, server_default="0")
    attempts: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    let_go: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    fruitless: Mapped[int] = mapped_column(default=0, server_default="0")  # an older process writes stages, too
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    worker: Mapped[str | None] = mapped_column(String(255))
    devices: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    dispatched_at: Mapped[int | None] = mapped_column(BigInteger)
    claimed_at: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)

    @hybrid_property
    def seconds(self) -> float | None:
        """How long it took, whatever clocks did meanwhile: by its workers' own, as far as they told of it."""
        if self.ran_seconds > 0 or self.finished_at is None or self.started_at is None:
            return self.ran_seconds or None
        return self.finished_at - self.started_at

    @seconds.inplace.expression
    @classmethod
    def _seconds(cls) -> ColumnElement[float]:
        return case((cls.ran_seconds > 0, cls.ran_seconds), else_=cls.finished_at - cls.started_at)


class KeptCheckpoint(Base):
    """A checkpoint of a stage in the store, from which a worker on another host can go on.

    `work` is what it is of, whichever stage does it (see `Claim.work`), `step` that work's own count of what is done,
    and `files` are [path, sha256, bytes] of what a work folder needs.
    """

    __tablename__ = "kept_checkpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage_id: Mapped[str] = mapped_column(ForeignKey("stages.id"), index=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    work: Mapped[str] = mapped_column(String(64), index=True)
    step: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)


class Artifact(Base):
    """One file that a stage wrote: `path` inside the folder of its `output`."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("stage_id", "output", "path"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage_id: Mapped[str] = mapped_column(ForeignKey("stages.id"))
    output: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)


IS_MESSAGE = text("type = 'message'")
"""Of an event. Written out: an index is only used where a query has its very words."""


class Event(Base):
    """Something that happened in a job; `seq` counts from 1 without a gap."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("job_id", "seq"),
        # of messages alone, as its migration has it: a long training tells a hundred metrics for each. (To say so here,
        # too, would have every process load what SQLAlchemy knows of either database.)
        Index("ix_events_messages", "job_id", "seq"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    seq: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Worker(Base):
    """A worker process that registered: `offer` is what it has (see placement.py), `beat` counts its signs of life, and
    `beat_at` is for people to read."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    offer: Mapped[dict[str, Any]] = mapped_column(JSON)
    beat: Mapped[int] = mapped_column(BigInteger)
    beat_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int] = mapped_column(BigInteger)


class Lease(Base):
    """What one process does for all: `holder` is the one that does, or empty, and `beat` counts its signs of life."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    beat: Mapped[int] = mapped_column(BigInteger)
