"""The registry of models: base models that the operator adds from a folder, and those that jobs made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.errors import Conflict, Forbidden, InvalidRequest, NotFound
from service.jobs.lifecycle import JOB_ENDED
from service.jobs.registry.folders import checked, licence_of
from service.jobs.registry.verdicts import Verdict, probed
from service.jobs.repository import exported, holdings, registered
from service.jobs.tables import Model
from service.storage.store import Store

_NAME = re.compile(r"(?!ft:)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def register_model(
    database: Database,
    store: Store,
    name: str,
    folder: Path,
    owner: str | None = None,
    probe: Callable[[Path], Verdict] = probed,
    source: str | None = None,
) -> Model:
    """Copies a model from a local folder into the store, under `name`; without an owner it is everyone's. `source` is
    where the folder comes from.

    Takes safetensors and the known configuration files alone, and refuses whatever could run code or lead out of the
    folder, and what a probe finds that it cannot be trained. The same files under the same name again change nothing,
    but for the probe's verdict, which is kept. Raises InvalidRequest or Conflict.
    """
    check_name(name)
    paths = checked(folder)
    verdict = probe(folder)
    blobs = {path.name: store.put(path) for path in paths}
    files = [{"path": key, "bytes": blob.size, "sha256": blob.sha256} for key, blob in sorted(blobs.items())]
    with database.transaction() as session:
        model = repository.model_by_name(session, name)
        if model is None:
            model = Model(id=name, owner=owner, created_at=database.now(), files=files)
            session.add(model)
        elif (model.files, model.owner) != (files, owner):
            raise Conflict(f"There is another model {name!r}: choose another name, or delete that one first.", "name")
        model.verdict, model.origin = verdict, {"license": licence_of(folder), "source": source}
        return model


def check_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be the name of a registered model: a URL, say, or a path."""
    parts = name.split("/")
    if not _NAME.fullmatch(name) or len(name) > 96 or ".." in name or {"files", "export"} & set(parts):
        raise InvalidRequest(
            "A model's name is letters, digits, '.', '_' and '-', with at most one '/', as in 'smollm2' or "
            "'acme/smollm2'.",
            "name",
        )


def read_models(database: Database, owner: str) -> Sequence[Model]:
    """The owner's models and everyone's."""
    with database.snapshot() as session:
        return repository.models(session, owner)


def registered_names(database: Database, owner: str) -> Sequence[str]:
    """The first hundred names of the models that somebody registered, and no job made."""
    with database.snapshot() as session:
        return registered.registered_names(session, owner, 100)


def read_made(database: Database, owner: str, word: str, after: str | None, most: int) -> tuple[Sequence[Model], bool]:
    """Models that the owner's jobs made, whose name holds `word`, the newest first, behind the model `after`; and
    whether there are more. Raises NotFound for an unknown one."""
    with database.snapshot() as session:
        place = None if after is None else found_model(session, owner, after)
        found = registered.made_models(session, owner, word, place, most + 1)
        return found[:most], len(found) > most


def read_registered(database: Database, owner: str, word: str, most: int) -> Sequence[Model]:
    """Models that somebody registered, whose name holds `word`."""
    with database.snapshot() as session:
        return registered.registered_models(session, owner, word, most)


def names(database: Database, owner: str, most: int) -> list[str]:
    """What a job of the owner's can start from: what was registered, and what jobs made, the newest first."""
    with database.snapshot() as session:
        return [*registered.registered_names(session, owner, most), *registered.made_names(session, owner, most)]


def read_model(database: Database, owner: str, name: str) -> Model:
    """The model. Raises NotFound."""
    with database.snapshot() as session:
        return found_model(session, owner, name)


def file_of(model: Model, path: str) -> dict[str, Any]:
    """One file of the model: {path, bytes, sha256}. Raises NotFound."""
    for file in model.files:
        if file["path"] == path:
            return file
    raise NotFound(f"Model {model.id!r} has no file {path!r}.")


def delete_model(database: Database, owner: str, name: str, admin: bool) -> None:
    """Forgets a model; everyone's only an admin may. Unfinished jobs that began with it go on.

    What a job made goes with all the names that the job gave it, and with the files that its stages left of it. Raises
    NotFound or Forbidden, and Conflict while that job may still need it.
    """
    with database.transaction() as session:
        model = found_model(session, owner, name)
        if model.owner is None and not admin:
            raise Forbidden(f"Model {name!r} is everyone's: only an admin key deletes it.")
        _check_ended(session, model)
        for other in holdings.namesakes(session, model):
            exported.drop_exports(session, other.id)
            session.delete(other)
        holdings.erase_checkpoints(session, model)


def _check_ended(session: Session, model: Model) -> None:
    job = None if model.job_id is None else repository.lock_job(session, model.job_id)
    if job is not None and job.status not in JOB_ENDED:
        raise Conflict(f"Job {job.id}, which made the model, is {job.status.value}: cancel it first, or let it end.")


def found_model(session: Session, owner: str, name: str) -> Model:
    """The owner's model, or everyone's. Raises NotFound."""
    model = repository.model(session, owner, name)
    if model is None:
        raise NotFound(f"The model {name!r} does not exist.", "model", "model_not_found")
    return model
