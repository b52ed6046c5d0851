"""The registry of models: base models that the operator adds from a folder, and those that jobs made."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.db import Database
from service.jobs import repository
from service.jobs.errors import Conflict, Forbidden, InvalidRequest, NotFound
from service.jobs.tables import Model
from service.jobs.verdicts import Verdict, probed
from service.storage.store import Store

_NAME = re.compile(r"(?!ft:)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")

KNOWN = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
}
"""The files of a model beside its weights. Others in the folder are left where they are."""

INDEX = "model.safetensors.index.json"


def register_model(
    database: Database,
    store: Store,
    name: str,
    folder: Path,
    owner: str | None = None,
    probe: Callable[[Path], Verdict] = probed,
) -> Model:
    """Copies a model from a local folder into the store, under `name`; without an owner it is everyone's.

    Takes safetensors and the known configuration files alone, and refuses whatever could run code or lead out of the
    folder, and what a probe finds that it cannot be trained. The same files under the same name again change nothing,
    but for the probe's verdict, which is kept. Raises InvalidRequest or Conflict.
    """
    check_name(name)
    paths = _checked(folder)
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
        model.verdict = verdict
        return model


def check_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be the name of a registered model: a URL, say, or a path."""
    parts = name.split("/")
    if not _NAME.fullmatch(name) or len(name) > 96 or ".." in name or "files" in parts:
        raise InvalidRequest(
            "A model's name is letters, digits, '.', '_' and '-', with at most one '/', as in 'smollm2' or "
            "'acme/smollm2'.",
            "name",
        )


def read_models(database: Database, owner: str) -> Sequence[Model]:
    """The owner's models and everyone's."""
    with database.snapshot() as session:
        return repository.models(session, owner)


def read_model(database: Database, owner: str, name: str) -> Model:
    """The model. Raises NotFound."""
    with database.snapshot() as session:
        return _found(repository.model(session, owner, name), name)


def file_of(model: Model, path: str) -> dict[str, Any]:
    """One file of the model: {path, bytes, sha256}. Raises NotFound."""
    for file in model.files:
        if file["path"] == path:
            return file
    raise NotFound(f"Model {model.id!r} has no file {path!r}.")


def delete_model(database: Database, owner: str, name: str, admin: bool) -> None:
    """Forgets a model; everyone's only an admin may. Jobs that began with it go on. Raises NotFound or Forbidden."""
    with database.transaction() as session:
        model = _found(repository.model(session, owner, name), name)
        if model.owner is None and not admin:
            raise Forbidden(f"Model {name!r} is everyone's: only an admin key deletes it.")
        session.delete(model)


def _found(model: Model | None, name: str) -> Model:
    if model is None:
        raise NotFound(f"The model {name!r} does not exist.", "model", "model_not_found")
    return model


# --- what a model's folder may hold


def _checked(folder: Path) -> list[Path]:
    """The files to take. Raises InvalidRequest, saying what to change."""
    if not folder.is_dir():
        raise _refused(f"{folder} is no folder.")
    found = {path.name: path for path in folder.iterdir()}
    weights = [name for name in found if name.endswith(".safetensors")]
    if "config.json" not in found or not weights:
        pickled = " (pickled weights are not taken: convert them first)" if _pickles(found) else ""
        raise _refused(f"{folder} must hold config.json and *.safetensors{pickled}.")
    taken = [found[name] for name in sorted((KNOWN & set(found)) | set(weights))]
    for path in taken:
        _check_inside(path, folder)
    for name in KNOWN & set(found):
        if name.endswith(".json"):
            _check_json(found[name])
    if INDEX in found:
        _check_index(found[INDEX], set(weights))
    for name in weights:
        _check_header(found[name])
    return taken


def _pickles(names: Any) -> bool:
    return any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names)


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise _refused(f"{path.name} leads out of the folder, or is no file: put the file itself there.")


def _check_json(path: Path) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _refused(f"{path.name} is not JSON.") from None
    if isinstance(value, dict) and "auto_map" in value:
        raise _refused(f"{path.name} has auto_map: models that bring their own code are not taken.")
    if path.name == "config.json" and not isinstance(value, dict):
        raise _refused("config.json must hold an object.")


def _check_index(path: Path, weights: set[str]) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) and name in weights for name in shards.values()):
        raise _refused(f"{INDEX} must map every weight to a safetensors file of this folder.")


def _check_header(path: Path) -> None:
    """A safetensors file says how long it is: one that was cut short, or is something else, is found here."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100 * 2**20)))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except (struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise _refused(f"{path.name} is not a safetensors file.") from None
    if 8 + length + end != path.stat().st_size:
        raise _refused(f"{path.name} is not whole: its header speaks of {8 + length + end} bytes.")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, "path", "invalid_model")
