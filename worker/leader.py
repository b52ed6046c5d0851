"""One scheduler acts at a time: the one whose lease in the database stands, by the clock of whoever looks.

Safety does not rest on it (see `worker.scheduling`): it spares the others their work, and the broker double rings. A
leader that is frozen or cut off is no leader after a lease, and finds out when it next looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.jobs.running import leases
from service.jobs.running.vigil import Vigil

SCHEDULER = "scheduler"


class Leadership:
    """Who acts. `holder` names the worker: one that starts again leads on at once. `every` and `lease` are seconds:
    between two signs of life, and without one until another leads. `clock` is monotonic."""

    def __init__(
        self, database: Database, holder: str, every: float, lease: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._holder, self._every, self._lease, self._clock = database, holder, every, lease, clock
        self._vigil, self._seen = Vigil(), leases.NOBODY
        self._renewed: float | None = None

    def held(self) -> bool:
        """Whether this process leads; tries to, where nobody does any more."""
        now = self._clock()
        if self._renewed is not None and now - self._renewed < self._every:
            return True
        self._renewed = None
        silent = self._vigil.still(self._seen, now) >= self._lease
        self._seen = leases.take(self._database, SCHEDULER, self._holder, self._seen if silent else None)
        self._vigil.see([self._seen], now)
        if self._seen.holder == self._holder:
            self._renewed = now
        return self._renewed is not None

    def close(self) -> None:
        """Let another lead, as far as the database can still be told."""
        self._renewed = None
        with suppress(SQLAlchemyError):
            leases.leave(self._database, SCHEDULER, self._holder)
