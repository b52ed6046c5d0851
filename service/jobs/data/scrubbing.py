"""All that is stored is read again in time, at a pace that nobody notices, and held against its hash.

What does not hold is set aside: from then on the store says that it has no such content. So a result of which it is a
part is computed again when it is needed next (see `attempts.lose`), and whoever uploads a file again heals it. Where
the reading has come to stands in the database: whoever leads goes on from there.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from service.db import Database
from service.jobs.repository import damaged
from service.jobs.tables import Damage
from service.storage.store import BlobMissing, Corrupt, Store, Stored

log = logging.getLogger(__name__)

_AT_LEAST_BYTES = 2**20
"""A look reads so many, as far as the pace allows: a small store is read long before its time is over."""


def damage_in(store: Store, sha256: str, read: Callable[[int], object] = lambda _: None) -> str | None:
    """Reads a content to its end; the name of what is damaged, which may be a part of it, or None. `read` hears how
    many bytes were."""
    try:
        for chunk in store.read_back(sha256):
            read(len(chunk))
    except BlobMissing:
        return None  # it was erased meanwhile; a part that lacks is found with the rows that want it
    except Corrupt as error:
        return error.sha256
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return sha256  # the disk has it no more
    return None


def quarantine(database: Database, store: Store, sha256: str) -> bool:
    """Sets a content aside that somebody found damaged, and notes it, where a second reading finds the same."""
    with suppress(BlobMissing):
        there = store.find(sha256)
        if damage_in(store, sha256) == sha256 and store.set_aside(sha256, there.mark):
            with database.transaction() as session:
                session.merge(Damage(id=sha256, bytes=there.size, found_at=database.now()))
            log.error("content_damaged sha256=%s bytes=%s", sha256, there.size)
            return True
    return False


@dataclass(frozen=True)
class Reading:
    """How far it has come in all, and what is damaged."""

    contents: int
    bytes: int
    rounds: int
    damages: Sequence[Damage]


def read(database: Database) -> Reading:
    """As the database has it."""
    with database.snapshot() as session:
        scrub = damaged.last_scrub(session)
        counts = (scrub.contents, scrub.bytes, scrub.rounds) if scrub else (0, 0, 0)
        return Reading(*counts, damaged.damages(session))


@dataclass(frozen=True)
class Scrubbed:
    """What a look did: bytes that it read, contents that it found damaged, and earlier ones that are whole again."""

    bytes: int
    damaged: int
    healed: int


class Scrubber:
    """Reads what is stored, in the order of names, so that each content is read within `seconds`, at `pace` bytes a
    second at most."""

    def __init__(
        self,
        database: Database,
        store: Store,
        seconds: float,
        pace: float,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._database, self._store = database, store
        self._seconds, self._pace, self._sleep = seconds, pace, sleep

    def look(self) -> Scrubbed:
        """Read as much as is due since the last look."""
        now = self._database.now()
        with self._database.transaction() as session:
            scrub = damaged.scrub(session, now)
        ahead = sorted(self._store.stored(), key=lambda blob: blob.sha256)
        left = [blob for blob in ahead if blob.sha256 > scrub.place]
        due = self._due(sum(blob.size for blob in left), now - scrub.looked_at, scrub.began_at + self._seconds - now)
        size = count = found = 0
        while left and size <= due:
            blob = left.pop(0)
            found += self._whole(blob)
            size, count, scrub.place = size + blob.size, count + 1, blob.sha256
        with self._database.transaction() as session:
            damaged.note(session, scrub, count, size, now, ended=not left)
        return Scrubbed(size, found, self._forget_healed())

    def _due(self, left: int, since: float, until: float) -> float:
        """Bytes to read now, so that all are read in time; a clock that was set makes it no more than the pace has."""
        since, until = max(1.0, since), max(1.0, until)
        return min(max(left * since / until, _AT_LEAST_BYTES), self._pace * since)

    def _whole(self, blob: Stored) -> int:
        """Reads one content, unless it is made of others, which are read themselves; how many it set aside."""
        if self._store.made_of(blob.sha256):
            return 0
        name = damage_in(self._store, blob.sha256, lambda size: self._sleep(size / self._pace))
        return 0 if name is None else int(quarantine(self._database, self._store, name))

    def _forget_healed(self) -> int:
        with self._database.snapshot() as session:
            healed = [row.id for row in damaged.damages(session) if self._store.exists(row.id)]
        if healed:
            with self._database.transaction() as session:
                damaged.forget(session, healed)
            log.info("contents_healed sha256=%s", ",".join(healed))
        return len(healed)
