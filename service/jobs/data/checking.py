"""All that is stored is read, held against its hash and compared with what the rows name; and put right where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.db import Database
from service.jobs.data.erasing import Keeping, held_contents
from service.jobs.data.scrubbing import damage_in, quarantine
from service.jobs.data.sparing import Spared
from service.jobs.tables import Damage
from service.storage.store import Store, Stored


@dataclass(frozen=True)
class Findings:
    """What was read, and what is wrong: contents that do not have their hash; rows without a file, each content with
    who holds it; files without a row. `erasable` are those of the last that have lain there for longer than the grace.
    """

    contents: int
    bytes: int
    damaged: Sequence[str]
    missing: Mapping[str, Sequence[str]]
    unheld: Sequence[Stored]
    erasable: Sequence[Stored]

    @property
    def is_well(self) -> bool:
        """That something waits to be erased is no fault."""
        return not (self.damaged or self.missing)


@dataclass(frozen=True)
class Mended:
    """What was put right: contents set aside, contents noted as gone, contents erased and their bytes."""

    set_aside: int
    noted: int
    erased: int
    bytes: int


def verify(
    database: Database, store: Store, keeping: Keeping, told: Callable[[int, int], object] = lambda *_: None
) -> Findings:
    """Reads everything, and changes nothing. `told` hears (bytes read, bytes in all)."""
    blobs = list({blob.sha256: blob for blob in store.stored()}.values())
    held = held_contents(database, store, keeping)
    total, read, damaged = sum(blob.size for blob in blobs), 0, list[str]()

    def count(size: int) -> None:
        nonlocal read
        read += size
        told(read, total)

    told(0, total)
    for blob in blobs:
        name = damage_in(store, blob.sha256, count)
        if name is not None and name not in damaged:
            damaged.append(name)
    missing = {
        sha256: sorted(owner or "everyone" for owner in owners)
        for sha256, owners in held.items()
        if sha256 not in damaged and not store.exists(sha256)
    }
    still = held_contents(database, store, keeping)  # reading took its time
    unheld = [blob for blob in blobs if blob.sha256 not in held and blob.sha256 not in still]
    erasable = [blob for blob in unheld if blob.at and database.now() - blob.at > keeping.grace]
    return Findings(len(blobs), read, damaged, missing, unheld, erasable)


def mend(database: Database, store: Store, keeping: Keeping, found: Findings) -> Mended:
    """Sets aside what is damaged, notes what is gone, so that the stages that made it make it again when it is needed,
    and, unless a backup is being made, erases what nobody has held for the grace. What has changed since it was found
    is left as it is."""
    erasable = () if Spared(database).look() else found.erasable
    aside = sum(quarantine(database, store, sha256) for sha256 in found.damaged)
    held = held_contents(database, store, keeping)
    gone = [sha256 for sha256 in found.missing if sha256 in held and not store.exists(sha256)]
    with database.transaction() as session:
        for sha256 in gone:
            session.merge(Damage(id=sha256, bytes=0, found_at=database.now()))
    over = [blob for blob in erasable if blob.sha256 not in held and store.delete(blob.sha256, blob.mark)]
    return Mended(aside, len(gone), len(over), sum(blob.size for blob in over))
