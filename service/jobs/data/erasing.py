"""What nobody holds any more is erased: a blob that was without a holder in two looks, a grace apart.

A blob is stored before the row that names it is committed, and a row may pass its content on to another that is not
committed yet. Neither takes as long as the grace, so whoever is about to hold a blob is never too late; and a blob that
is stored again meanwhile is another one (its mark has changed) and begins anew. The grace is counted by this process's
own monotonic clock: whatever happens to clocks, it never gets shorter.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.db import Database
from service.jobs.data.sparing import Spared
from service.jobs.repository import holdings, kept
from service.settings import Settings
from service.storage.store import Store


@dataclass(frozen=True)
class Keeping:
    """For how long, in seconds: a blob without a holder; a refused file with its report; what a job began with, once it
    has failed or was cancelled and may be retried."""

    grace: float
    refused: float
    retriable: float


def keeping_of(settings: Settings) -> Keeping:
    """As the settings have it."""
    return Keeping(settings.sweep_grace_seconds, settings.keep_refused_seconds, settings.keep_sources_seconds)


@dataclass(frozen=True)
class Erased:
    """What a look did: rows whose time was over, blobs and their bytes, and files that dead writers had left."""

    rows: int
    blobs: int
    bytes: int
    leftovers: int


@dataclass
class Eraser:
    """Looks for what nobody holds. Several may look at once, for a blob that is gone is gone."""

    database: Database
    store: Store
    keeping: Keeping
    clock: Callable[[], float] = time.monotonic
    _unheld: dict[str, tuple[str, float]] = field(default_factory=dict)
    _spared: Spared = field(init=False)

    def __post_init__(self) -> None:
        self._spared = Spared(self.database, self.clock)

    def look(self) -> Erased:
        """Forget what is over, and erase what has been without a holder for the grace, unless a backup is being
        made."""
        spared = self._spared.look()  # first: a backup that begins from here on copies rows that name none of it
        rows = drop_expired(self.database, self.keeping)
        held, now = held_contents(self.database, self.store, self.keeping), self.clock()
        unheld, blobs, size = {}, 0, 0
        for blob in self.store.stored():
            if blob.sha256 in held:
                continue
            mark, since = self._unheld.get(blob.sha256, (blob.mark, now))
            since = since if mark == blob.mark else now
            is_over = now - since >= self.keeping.grace and not spared
            if is_over and self.store.delete(blob.sha256, blob.mark):
                blobs, size = blobs + 1, size + blob.size
            else:
                unheld[blob.sha256] = (blob.mark, since)
        self._unheld = unheld
        return Erased(rows, blobs, size, self.store.tidy())


def drop_expired(database: Database, keeping: Keeping) -> int:
    """Forgets files and uploads whose time is over, how many, and checkpoints that nobody will go on from."""
    with database.transaction() as session:
        now = database.now()
        kept.drop_over(session, now - int(keeping.retriable))
        return holdings.drop_expired(session, now, now - int(keeping.refused))


def tally(database: Database, store: Store, keeping: Keeping) -> Mapping[str, tuple[int, int]]:
    """(contents, bytes) by owner, each content counted for everyone who holds it; "everyone" are base models, and
    "nobody" is what will be erased."""
    held, count = held_contents(database, store, keeping), defaultdict[str, list[int]](list)
    for blob in store.stored():
        for owner in held.get(blob.sha256, {"nobody"}):
            count[owner or "everyone"].append(blob.size)
    return {owner: (len(sizes), sum(sizes)) for owner, sizes in count.items()}


def held_contents(database: Database, store: Store, keeping: Keeping) -> dict[str, set[str | None]]:
    """Every content that is needed, and who needs it: what is made of others needs those, too."""
    held = defaultdict[str, set[str | None]](set)
    with database.snapshot() as session:
        for owner, sha256 in holdings.holders(session, database.now() - int(keeping.retriable)):
            held[sha256].add(owner)
    for sha256, owners in list(held.items()):
        for part in store.made_of(sha256):
            held[part] |= owners
    return dict(held)
