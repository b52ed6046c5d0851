"""What one process does for all: which one, by a lease that its holder renews. One verb, one transaction.

No clock is compared between hosts: a lease is a count, and whoever waits for it watches with a clock of its own whether
it still counts (`vigil`).
"""

from __future__ import annotations

from dataclasses import dataclass

from service.db import Database
from service.jobs import repository


@dataclass(frozen=True)
class Sign:
    """Who holds a lease, and how often it was taken or renewed."""

    holder: str
    beat: int


NOBODY = Sign("", -1)


def read(database: Database, name: str) -> Sign:
    """Who holds the lease, as far as anybody can tell."""
    with database.snapshot() as session:
        lease = repository.lease(session, name)
        return Sign(lease.holder, lease.beat)


def take(database: Database, name: str, holder: str, silent: Sign | None = None) -> Sign:
    """Takes or renews the lease where it is the holder's own, nobody's, or still at the sign that was silent for too
    long; who holds it now."""
    with database.transaction() as session:
        lease = repository.lock_lease(session, name)
        if lease.holder in ("", holder) or Sign(lease.holder, lease.beat) == silent:
            lease.holder, lease.beat = holder, lease.beat + 1
        return Sign(lease.holder, lease.beat)


def leave(database: Database, name: str, holder: str) -> None:
    """Gives the lease back, where it is the holder's."""
    with database.transaction() as session:
        lease = repository.lock_lease(session, name)
        if lease.holder == holder:
            lease.holder = ""
