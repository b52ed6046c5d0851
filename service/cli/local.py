"""`allo keys` and `allo models`: what an operator does on the machine itself, running service or not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from service.cli.commands import Commands, add_json, sentence, verbs
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import CommandError, err, listing, shown
from service.db import Database
from service.jobs.access import keys
from service.jobs.registry import models
from service.jobs.tables import ApiKey, Model
from service.migrating import migrate
from service.settings import Settings
from service.storage import open_store

_KEYS_EPILOG = """\
examples:
  allo keys create --owner alice                       a key that may read and submit
  allo keys create --owner ci --scopes read --days 7   a key that reads, for a week
  allo keys list
  allo keys rotate key-…                               another secret for the same key, such as after a leak
  allo keys revoke key-…

Everything that a key makes belongs to its owner; other owners do not see it.
"""
_MODELS_EPILOG = """\
examples:
  allo models add smollm2 ./SmolLM2-135M-Instruct    a folder with config.json, tokenizer and *.safetensors
  allo models add tiny ~/.cache/huggingface/hub/models--acme--tiny/snapshots/…
  ALLO_HUB_URL=https://huggingface.co allo models add tiny acme/tiny --revision v1
  allo models list
  allo models remove tiny

Adding copies the files into the data folder. Pickled weights and models with code of their own are refused, and so is
what cannot be trained: a small model of the same architecture is tried. Rows of a training batch hold several sequences
(packed) where that changes nothing, else one: right in any case, only slower.
"""


def add_keys(commands: Commands[argparse.ArgumentParser]) -> None:
    found = _with_verbs(commands, "keys", "create, list, rotate and revoke API keys", _KEYS_EPILOG)
    create = _verb(found, "create", "make a key and print it, this once", _create_key)
    create.add_argument("--owner", default="local", help="whose key it is (local)")
    create.add_argument(
        "--scopes", nargs="+", choices=keys.SCOPES, default=["read", "submit"], help="what it may do (read submit)"
    )
    create.add_argument("--days", type=float, help="days until it expires (never)")
    _verb(found, "list", "show every key, without its secret", _list_keys)
    rotate = _verb(found, "rotate", "give a key another secret and print it, this once", _rotate_key)
    rotate.add_argument("id", help="key-…, as `allo keys list` shows it")
    revoke = _verb(found, "revoke", "end a key; within two seconds it opens nothing", _revoke_key)
    revoke.add_argument("id", help="key-…, as `allo keys list` shows it")


def add_models(commands: Commands[argparse.ArgumentParser]) -> None:
    found = _with_verbs(commands, "models", "register the models that jobs start from", _MODELS_EPILOG)
    add = _verb(found, "add", "register a local folder as a model for everyone", _add_model)
    add.add_argument("name", help="the name that jobs use")
    add.add_argument("path", help="a folder with config.json, tokenizer and *.safetensors; or a Hub id, owner/name")
    add.add_argument("--revision", help="which revision of a Hub id (main); the commit that it is now is taken")
    _verb(found, "list", "show everyone's models and the local owner's", _list_models)
    remove = _verb(found, "remove", "forget a model of those; unfinished jobs that began with it go on", _remove_model)
    remove.add_argument("name", help="as `allo models list` shows it")


def _with_verbs(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> Commands[argparse.ArgumentParser]:
    where = f"{sentence(summary)[:-1]}, in the data folder's own database."
    return verbs(commands, name, summary, epilog, where)


def _verb(
    found: Commands[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    verb = found.add_parser(name, help=summary, description=sentence(summary))
    add_json(verb)
    add_data_dir(verb)
    verb.set_defaults(run=run)
    return verb


@contextmanager
def _opened(args: argparse.Namespace, makes: bool = False) -> Iterator[tuple[Settings, Database]]:
    """The data folder's database. In the wrong folder there is none: only what `makes` something begins one there, and
    says so."""
    settings = local_settings(args)
    if not settings.database_url and not (settings.data_dir / "allo.db").exists():
        if not makes:
            raise CommandError(
                f"{settings.data_dir} is no service's data folder: it has no database. `allo up` begins one; where "
                "there is one elsewhere, give --data-dir DIR, or set ALLO_DATA_DIR."
            )
        err.print(f"{settings.data_dir} has no database: a new one is made there.", style="yellow", markup=False)
    settings.open_data_dir()
    migrate(settings.database)
    database = Database(settings.database)
    try:
        yield settings, database
    finally:
        database.close()


def _create_key(args: argparse.Namespace) -> int:
    if args.days is not None and not 0 < args.days < 36_500:
        raise CommandError(f"--days {args.days:g}: write for how many days the key is to open, more than 0.")
    expires = None if args.days is None else int(time.time() + args.days * 86400)
    with _opened(args, makes=True) as (_, database):
        key = keys.create_key(database, args.owner, args.scopes, expires)
    made = {"id": key.id, "owner": args.owner, "scopes": args.scopes, "expires_at": expires, "secret": key.secret}
    note = f"({key.id}, owner {args.owner}, scopes {' '.join(args.scopes)}; it is shown this once)"
    shown(args, made, lambda: f"{key.secret}\n{note}")
    return 0


def _rotate_key(args: argparse.Namespace) -> int:
    with _opened(args) as (_, database):
        key = keys.rotate_key(database, args.id)
    note = f"(the secret of {key.id} from now on; it is shown this once)"
    shown(args, {"id": key.id, "secret": key.secret}, lambda: f"{key.secret}\n{note}")
    return 0


def _list_keys(args: argparse.Namespace) -> int:
    with _opened(args) as (_, database):
        found = [_key(key, database.now()) for key in keys.list_keys(database)]
    shown(args, found, lambda: _key_table(found))
    return 0


def _key(key: ApiKey, now: int) -> dict[str, Any]:
    """As `GET /v1/keys` has it."""
    told = {"id": key.id, "begins_with": key.prefix, "owner": key.owner, "scopes": key.scopes}
    return told | {"expires_at": key.expires_at, "status": keys.status(key, now)}


def _key_table(found: list[dict[str, Any]]) -> Table:
    table = listing("id", "begins with", "owner", "scopes", "state")
    for key in found:
        table.add_row(key["id"], key["begins_with"], key["owner"], " ".join(key["scopes"]), key["status"])
    return table


def _revoke_key(args: argparse.Namespace) -> int:
    with _opened(args) as (_, database):
        keys.revoke_key(database, args.id)
    shown(args, {"id": args.id, "deleted": True}, lambda: f"{args.id} is revoked.")
    return 0


def _add_model(args: argparse.Namespace) -> int:
    with _opened(args, makes=True) as (settings, database), err.status(f"Adding {escape(args.path)} …"):
        folder, source = _folder(settings, args.path, args.revision)
        model = models.register_model(
            database, open_store(settings.store, settings.s3), args.name, folder, source=source
        )
    shown(args, _model(model), lambda: _added(model))
    return 0


def _model(model: Model) -> dict[str, Any]:
    """As `GET /v1/models` has it."""
    size, files = sum(file["bytes"] for file in model.files), len(model.files)
    return {"id": model.id, "job_id": model.job_id, "files": files, "bytes": size, "verdict": model.verdict}


def _added(model: Model) -> str:
    told = _model(model)
    said = f"{model.id}: {told['files']} files, {told['bytes'] / 2**20:.0f} MiB, trained on {_rows(model)}."
    reason = model.verdict["reason"] if model.verdict else ""
    return f"{said}\n{reason}".rstrip()


def _folder(settings: Settings, path: str, revision: str | None) -> tuple[Path, str | None]:
    """The model's folder, fetched where the path is none but a Hub id, and then where it comes from."""
    from service.cli import fetching  # here: other commands need no client of the Hub

    if Path(path).exists() or not fetching.looks_like_id(path):
        if revision is not None:
            raise CommandError(f"--revision is of a Hub id; {path} is a path.")
        return Path(path), None
    return fetching.fetch(settings, path, revision)


def _rows(model: Model) -> str:
    if model.verdict is None:
        return "rows that a stage chooses"
    return "packed rows" if model.verdict["packs"] else "one sequence a row"


def _list_models(args: argparse.Namespace) -> int:
    with _opened(args) as (_, database):
        found = models.read_models(database, "local")
    shown(args, [_model(model) for model in found], lambda: _model_table(found))
    return 0


def _model_table(found: Sequence[Model]) -> Table | str:
    if not found:
        return "There are no models: `allo models add NAME FOLDER` registers one."
    table = Table("name", "MiB", "made by", "rows")
    for model in found:
        size = _model(model)["bytes"]
        table.add_row(model.id, f"{size / 2**20:.0f}", model.job_id or "the operator", _rows(model))
    return table


def _remove_model(args: argparse.Namespace) -> int:
    with _opened(args) as (_, database):
        models.delete_model(database, "local", args.name, admin=True)
    shown(args, {"id": args.name, "deleted": True}, lambda: f"{args.name} is removed.")
    return 0
