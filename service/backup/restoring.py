"""A backup taken back: contents first, each verified, then the database, put in order before anybody works with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.backup import dumps
from service.backup.dumps import DumpError
from service.backup.saving import DATABASE, Manifest, Told, alone, contents_of, copy_all, made, sha256_of, store_in
from service.db import Database
from service.jobs.data.scrubbing import damage_in
from service.jobs.running.anew import begin_anew
from service.migrating import migrate, newest
from service.storage.store import Store


@dataclass(frozen=True)
class Restored:
    """What was taken back: the backup's name, its contents, how many of them were copied, those that it lacks, and the
    jobs that go on."""

    name: str
    contents: int
    copied: int
    lacking: Sequence[str]
    jobs: int


def restore(
    folder: Path, name: str | None, url: str, store: Store, anyway: bool = False, told: Told = lambda *_: None
) -> Restored:
    """Has the database and the store hold what a backup of the folder does: the newest, or the one of that name.

    Raises DumpError, and leaves the database as it is, where the backup is no good, the database holds a service
    already, or contents are damaged or missing; these last, `anyway`, are noted instead: what stages made of them is
    made again when it is needed.
    """
    if not (folder / "backups").is_dir():
        raise DumpError(f"There is no backup in {folder}: give the folder that `allo backup` wrote to.")
    with alone(folder):
        name, manifest = _chosen(folder, name, url)
        dumps.check_empty(url)
        named = contents_of(folder, name)
        copied, _, lacking = copy_all(store_in(folder), store, named, partial(_whole, store), told)
        if lacking and not anyway:
            raise DumpError(
                f"{len(lacking)} of {len(named)} contents are damaged or missing in the backup, {lacking[0]} for one. "
                "Take another backup, or restore with --anyway what there is: files and models have to come again then."
            )
        with dumps.loaded(url, folder / "backups" / name / DATABASE) as place:
            migrate(place)
            database = Database(place)
            try:
                jobs = begin_anew(database, store, manifest.made_at, lacking)
            finally:
                database.close()
        return Restored(name, len(named), copied, lacking, jobs)


def _chosen(folder: Path, name: str | None, url: str) -> tuple[str, Manifest]:
    there = made(folder)
    name = name or next(reversed([*there]), None)
    if name is None or name not in there:
        raise DumpError(f"There is no such backup in {folder}. There are: {', '.join(there) or 'none'}.")
    manifest = there[name]
    if manifest.revision > newest():
        raise DumpError(f"The backup {name} was made by a later version of the service: restore it with that.")
    if manifest.database != dumps.kind_of(url):
        kinds = f"{manifest.database}, not {dumps.kind_of(url)}"
        raise DumpError(f"The backup {name} is of {kinds}: restore it into a database of its own kind.")
    if sha256_of(folder / "backups" / name / DATABASE) != manifest.sha256:
        raise DumpError(f"The database of the backup {name} is damaged: take another one.")
    return name, manifest


def _whole(store: Store, sha256: str) -> bool:
    return store.exists(sha256) and damage_in(store, sha256) is None
