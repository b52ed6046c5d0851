"""Models in forms that are made once, by a process of its own: asked for, begun, and ended one way or another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.clean import clean_json, clean_text
from service.jobs.errors import InvalidRequest, TooMany
from service.jobs.registry.models import found_model
from service.jobs.repository import exported
from service.jobs.tables import Artifact, Export, Model

QUEUED, RUNNING, READY, FAILED = "queued", "running", "ready", "failed"
UNFINISHED = (QUEUED, RUNNING)

AT_ONCE = 4
"""Exports of one owner that may wait to be made."""

REFUSED = "refused"
"""The error of a model that has no place in the form: another try would end the same way."""


def ask(database: Database, owner: str, name: str, format: str, options: Mapping[str, Any]) -> Export:
    """The model in this form, as far as it is; queued where nobody asked before, and again where an attempt failed by
    accident. Raises NotFound, InvalidRequest for a model that has no such form, or TooMany."""
    with database.transaction() as session:
        model = found_model(session, owner, name)
        inputs = _inputs(session, owner, model, format)
        export_id = _name(owner, model, format, options, inputs)
        row = exported.export(session, export_id)
        if row is None:
            if exported.count(session, owner, UNFINISHED) >= AT_ONCE:
                raise TooMany(f"{AT_ONCE} exports of yours are being made: wait for one of them.")
            row = Export(id=export_id, owner=owner, model=name, format=format, options=dict(options), inputs=inputs)
            row.created_at, row.status, row.files = database.now(), QUEUED, []
            session.add(row)
        elif row.status == FAILED and (row.error or {}).get("code") != REFUSED:
            row.status, row.error, row.finished_at = QUEUED, None, None
        return row


def of_model(database: Database, owner: str, name: str) -> Sequence[Export]:
    """What was asked for of a model, oldest first."""
    with database.snapshot() as session:
        return exported.exports(session, owner, name)


def begin(database: Database) -> Export | None:
    """The oldest that is to be made, marked as being made; None where there is none. What is marked already was left
    by somebody who is gone: there is one who makes exports."""
    with database.transaction() as session:
        row = exported.oldest(session, UNFINISHED)
        if row is not None:
            row.status = RUNNING
        return row


def finish(database: Database, export_id: str, files: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> None:
    """What was made, {path, bytes, sha256} of each file, and what was found when it was read back."""
    with database.transaction() as session:
        row = exported.export(session, export_id)
        if row is not None:  # its model may have been deleted meanwhile
            row.status, row.finished_at = READY, database.now()
            row.files, row.figures = [dict(file) for file in files], clean_json(figures)


def fail(database: Database, export_id: str, code: str, message: str) -> None:
    with database.transaction() as session:
        row = exported.export(session, export_id)
        if row is not None:
            row.status, row.finished_at = FAILED, database.now()
            row.error = {"code": code, "message": clean_text(message)}


def delta_of(database: Database, owner: str, name: str) -> Artifact:
    """The sparse checkpoint of a model that was trained in a mask. Raises InvalidRequest for any other."""
    with database.snapshot() as session:
        model = found_model(session, owner, name)
        for row in _artifacts(session, owner, model):
            if row.output == "delta":
                return row
    raise InvalidRequest(f"Model {name!r} has no sparse delta: all of its weights were trained.", "format", "no_delta")


def _artifacts(session: Session, owner: str, model: Model) -> Sequence[Artifact]:
    """What the stage wrote that left the model: the one whose checkpoint these very files are."""
    job = None if model.job_id is None else repository.job(session, owner, model.job_id)
    if job is None:
        return ()
    wanted = {file["sha256"] for file in model.files if file["path"].endswith(".safetensors")}
    for stage in repository.stages(session, [job.id]):
        rows = repository.artifacts(session, [stage.id])
        if wanted and wanted <= {row.sha256 for row in rows if row.output == "checkpoint"}:
            return rows
    return ()


def _inputs(session: Session, owner: str, model: Model, format: str) -> dict[str, list[Any]]:
    """What it is made of, each as [path, sha256] of its files: the model, and for an adapter the base too."""
    inputs = {"model": [[file["path"], file["sha256"]] for file in model.files]}
    if format == "peft":
        job = None if model.job_id is None else repository.job(session, owner, model.job_id)
        if job is None:
            message = f"Model {model.id!r} was made by no job of yours: it has no base to adapt."
            raise InvalidRequest(message, "format", "no_base")
        inputs["base"] = [[path, sha256] for path, sha256, _ in job.sources["model"]]
    return inputs


def _name(owner: str, model: Model, format: str, options: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    text = json.dumps([owner, model.id, format, dict(options), inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
