"""The service's store bears a marker: a content of chance, which the database names. Whoever reads both has the store
of this service, whatever two services have in common besides."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from service.db import Database
from service.jobs.repository import holdings
from service.jobs.tables import Marker
from service.storage.store import Store

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 60.0


def witnesses(database: Database) -> list[str]:
    """What a store is asked for, to tell whether it is the service's: the marker, or before there is one, a few
    contents that the database names."""
    with database.snapshot() as session:
        marker = holdings.marker(session)
        return [marker.sha256] if marker else holdings.latest(session, 3)


def proven(named: Sequence[str], found: int) -> bool:
    """Whether so many of the witnesses are enough: some contents may be damaged."""
    return 0 < len(named) <= 2 * found


@contextmanager
def marked(database: Database, store: Store) -> Iterator[None]:
    """The store gets the marker as soon as both can be had, and again where it was lost, by a thread that nobody waits
    for. An older version's worker erases what it does not know of."""
    over = threading.Event()

    def marking() -> None:
        while not over.is_set():
            try:
                mark(database, store)
            except (OSError, SQLAlchemyError) as error:
                log.warning("store_not_marked error=%r", error)
            over.wait(_AGAIN_SECONDS)

    thread = threading.Thread(target=marking, name="marking", daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(1.0)


def mark(database: Database, store: Store) -> None:
    """Has the store bear the marker. Not one that hardly has what the database names: that is another store, which is
    logged. Raises OSError where it cannot be asked or written."""
    with database.snapshot() as session:
        marker, named = holdings.marker(session), holdings.latest(session, 3)
    if marker and store.exists(marker.sha256):
        return
    found = sum(map(store.exists, named))
    if named and not proven(named, found):
        log.error("other_store found=%s of=%s advice='set ALLO_STORE_URL as it was'", found, len(named))
        return
    content = marker.content if marker else secrets.token_hex(32)
    blob = store.put_stream([content.encode()])
    if marker is None:
        with suppress(IntegrityError), database.transaction() as session:  # of two processes one comes first
            session.add(Marker(id=1, content=content, sha256=blob.sha256))
