"""Who did what: an entry for every request that changed something, or was refused when it tried. Never a secret."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.db import Database
from service.jobs.ids import new_id
from service.jobs.repository import Page, access
from service.jobs.tables import AuditEntry

_SECRET = re.compile(r"allo-[A-Za-z0-9_-]{20,}")


@dataclass(frozen=True)
class Deed:
    """What a request did, `jobs.cancel`, to what; `status` is HTTP's."""

    key_id: str
    owner: str
    address: str | None
    verb: str
    object_id: str | None
    status: int
    request_id: str


def record(database: Database, deed: Deed, keep_seconds: float) -> None:
    """Writes the deed, and forgets those that are older than `keep_seconds`. Inside the transaction that does it, the
    entry is there exactly where the deed is done."""
    with database.transaction() as session:
        now = database.now()
        access.forget_audit(session, now - int(keep_seconds))
        entry = AuditEntry(id=new_id("audit"), created_at=now, key_id=deed.key_id, owner=deed.owner, verb=deed.verb)
        entry.address = None if deed.address is None else _shown(deed.address, 64)
        entry.object_id = None if deed.object_id is None else _shown(deed.object_id, 255)
        entry.status, entry.request_id = deed.status, deed.request_id
        session.add(entry)


def read_page(
    database: Database, page: Page, owner: str | None = None, object_id: str | None = None
) -> tuple[list[AuditEntry], bool]:
    """Entries, of one owner or about one thing where that is asked for, and whether there are more. Raises NotFound for
    an unknown `page.after`."""
    with database.snapshot() as session:
        return access.audit_page(session, page, owner, object_id)


def _shown(text: str, most: int) -> str:
    """A name as a client sent it, as it may be shown in a terminal: a key that it holds, by mistake, must not be kept,
    nor what moves a cursor."""
    plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return _SECRET.sub("allo-…", plain)[:most]
