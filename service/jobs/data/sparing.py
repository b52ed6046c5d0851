"""While a backup is made, nothing that is stored is erased: what the copied rows name is there until it is copied, too.

The backup renews a lease, and whoever erases watches it with a clock of its own: a backup that died holds up nobody for
long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.jobs.errors import Busy
from service.jobs.running import leases
from service.jobs.running.vigil import Vigil

log = logging.getLogger(__name__)

BACKUP = "backup"
"""The lease's name."""

_EVERY, _LEASE = 5.0, 60.0
"""Seconds between two signs of life, and without one until a backup counts as dead."""


class Spared:
    """Whether a backup is being made, for one who watches. `clock` is monotonic."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock, self._vigil = database, clock, Vigil()

    def look(self) -> bool:
        """As it is now; the lease of one that died is given back for it."""
        sign, now = leases.read(self._database, BACKUP), self._clock()
        self._vigil.see([sign], now)
        if sign.holder and self._vigil.still(sign, now) >= _LEASE:
            leases.leave(self._database, BACKUP, sign.holder)
            return False
        return bool(sign.holder)


_patiently = partial(time.sleep, _LEASE)


@contextmanager
def spared(database: Database, holder: str, wait: Callable[[], object] = _patiently) -> Iterator[None]:
    """Nothing is erased in the block. Raises Busy where another backup is being made, and gives a sign of life during
    the `wait` for one."""
    _take(database, holder, wait)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(database, holder, ended), name="backup's lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        leases.leave(database, BACKUP, holder)


def _take(database: Database, holder: str, wait: Callable[[], object]) -> None:
    other = leases.take(database, BACKUP, holder)
    if other.holder == holder:
        return
    wait()
    now = leases.take(database, BACKUP, holder, silent=other)
    if now.holder != holder:
        raise Busy(f"Another backup is being made, by {now.holder}: wait for its end.")


def _renew(database: Database, holder: str, ended: threading.Event) -> None:
    while not ended.wait(_EVERY):
        try:
            leases.take(database, BACKUP, holder)
        except SQLAlchemyError as error:
            log.warning("lease_not_renewed lease=%s error=%r", BACKUP, error)
