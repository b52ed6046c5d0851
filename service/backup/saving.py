"""A backup of a service that runs: its database at one moment, and every content that this names.

    FOLDER/store/              the contents of all backups in the folder, as a store has them: each is there once
    FOLDER/backups/<name>/     database (SQLite's file, or what pg_dump wrote), contents.txt, manifest.json
    FOLDER/lock                held while one is made or taken back

Contents are immutable and named by their hash, and each is stored before a row names it. So the database comes first:
whatever its copy names is there, and stays while the service erases nothing (see `sparing`). What the folder has
already is not copied again. The manifest gets its name last: a backup is whole, or it is not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from service.backup import dumps
from service.backup.dumps import DumpError
from service.db import Database
from service.jobs.data.erasing import Keeping
from service.jobs.data.sparing import spared
from service.jobs.repository import holdings
from service.migrating import newest, version
from service.storage import open_store
from service.storage.checksums import counted, read_file
from service.storage.local import sync
from service.storage.store import Blob, BlobMissing, Corrupt, Store

FORMAT = 1
DATABASE, CONTENTS, MANIFEST = "database", "contents.txt", "manifest.json"

Told = Callable[[int, int], object]
"""Hears (contents done, contents in all)."""


@dataclass(frozen=True)
class Manifest:
    """What a backup is: the form of its folder; when it was made; which kind of database, at which revision, and the
    sha256 of its file; how many contents it names, and which of them the store did not have whole."""

    format: int
    made_at: str
    database: str
    revision: str
    sha256: str
    contents: int
    lacking: Sequence[str]


@dataclass(frozen=True)
class Saved:
    """A backup that was made: its name and manifest; contents and bytes that were copied for it, and contents that
    went with older ones."""

    name: str
    manifest: Manifest
    copied: int
    bytes: int
    pruned: int


def save(url: str, store: Store, keeping: Keeping, folder: Path, keep: int, told: Told = lambda *_: None) -> Saved:
    """Makes a backup in the folder, and forgets all but the newest `keep`. Raises DumpError, Busy."""
    if version(url) != newest():
        raise DumpError("There is no service's database of this version: `allo doctor` says what there is.")
    with alone(folder):
        target, database = store_in(folder), Database(url)
        name = _next_name(folder)
        try:
            with _aside(folder, name) as aside, spared(database, f"{socket.gethostname()}.{os.getpid()}"[-64:]):
                with dumps.dumped(url, aside / DATABASE) as session:
                    named = _named(session, store, database.now() - int(keeping.retriable))
                copied, size, lacking = copy_all(store, target, named, target.exists, told)
                dump = (dumps.kind_of(url), newest(), sha256_of(aside / DATABASE))
                made_at = name.partition("-")[2]
                manifest = Manifest(FORMAT, made_at, *dump, len(named), lacking)
                (aside / CONTENTS).write_text("".join(f"{sha256}\n" for sha256 in named))
                (aside / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
        finally:
            database.close()
        return Saved(name, manifest, copied, size, _prune(folder, target, keep))


def made(folder: Path) -> Mapping[str, Manifest]:
    """The backups in a folder by their names, the oldest first."""
    found = sorted((folder / "backups").glob(f"[!.]*/{MANIFEST}"))
    return {path.parent.name: _manifest(path) for path in found}


def contents_of(folder: Path, name: str) -> list[str]:
    """Every content that the backup names."""
    return (folder / "backups" / name / CONTENTS).read_text().split()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder is this process's. What lies in it is closed to every other user, for it is all that the service
    holds. Raises DumpError where another is at work there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DumpError(f"Another `allo backup` or `allo restore` is at work in {folder}.") from None
        yield


def store_in(folder: Path) -> Store:
    """The contents of all backups in the folder."""
    return open_store((folder / "store").absolute().as_uri())


def copy_all(
    source: Store, target: Store, named: Sequence[str], there: Callable[[str], bool], told: Told
) -> tuple[int, int, list[str]]:
    """Has the target hold them: (contents copied, because they were not `there`; their bytes; those that could not be
    had)."""
    count, size, lacking = 0, 0, list[str]()
    for place, sha256 in enumerate(named):
        told(place, len(named))
        if there(sha256):
            continue
        try:
            size += _copy(source, target, sha256)
        except (BlobMissing, Corrupt):
            lacking.append(sha256)
            continue
        count += 1
        if target.made_of(sha256) and not there(sha256):  # its recipe is not what was written
            lacking.append(sha256)
    told(len(named), len(named))
    return count, size, lacking


def _copy(source: Store, target: Store, sha256: str) -> int:
    """Has the target hold a content, verified as it is read; the bytes that were copied. What is made of others is
    named by its recipe. Raises BlobMissing, Corrupt."""
    recipe = source.recipe(sha256)
    if recipe is not None:
        target.derive(Blob(sha256, source.size(sha256)), recipe)
        return 0
    return target.put_stream(map(bytes, source.read_back(sha256))).size


def _manifest(path: Path) -> Manifest:
    said = json.loads(path.read_text())
    if said["format"] != FORMAT:
        raise DumpError(f"{path.parent} was made by a later version of the service: use that.")
    return Manifest(**said)


def _next_name(folder: Path) -> str:
    """Counted, for a clock that was set back must not make the newest the oldest."""
    last = next(reversed([*made(folder)]), "0-")
    return f"{int(last.partition('-')[0]) + 1:06}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}"


@contextmanager
def _aside(folder: Path, name: str) -> Iterator[Path]:
    """Where a backup is made; at the end it gets its name. What a killed one left goes."""
    (folder / "backups").mkdir(mode=0o700, exist_ok=True)
    for left in (folder / "backups").glob(".*"):
        shutil.rmtree(left)
    aside = folder / "backups" / f".{name}"
    aside.mkdir(mode=0o700)
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            sync(path)
        aside.rename(folder / "backups" / name)
        sync(folder / "backups")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _named(session: Session, store: Store, retriable_since: int) -> list[str]:
    """What the rows name and what that is made of, parts before what is made of them."""
    held = {sha256 for _, sha256 in holdings.holders(session, retriable_since)}
    return list(dict.fromkeys(name for sha256 in sorted(held) for name in (*store.made_of(sha256)[::-1], sha256)))


def _prune(folder: Path, target: Store, keep: int) -> int:
    """Forgets the oldest backups, and the contents that none of the others names; how many of these."""
    names = list(made(folder))
    for name in names[:-keep]:
        (folder / "backups" / name / MANIFEST).unlink()
        shutil.rmtree(folder / "backups" / name)
    needed = {sha256 for name in names[-keep:] for sha256 in contents_of(folder, name)}
    over = [blob for blob in list(target.stored())[::-1] if blob.sha256 not in needed]  # recipes before their parts
    target.tidy()
    return sum(target.delete(blob.sha256) for blob in over)


def sha256_of(path: Path) -> str:
    """Of a file."""
    return counted(read_file(path))[0].sha256
