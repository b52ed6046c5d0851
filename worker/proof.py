"""Whether a worker reads the service's store: with another one it would fail whatever it is given, and lose what it
made."""

from __future__ import annotations

import logging

from service.db import Database
from service.jobs.presence import Contents
from service.jobs.running import workers
from service.storage.store import StoreAway

log = logging.getLogger(__name__)


class Proof:
    """True once a store has half of a few contents that the database names: some may be damaged. Until then it is asked
    anew. Of a store that does not answer, or a database that names nothing yet, the best is believed."""

    def __init__(self, database: Database, store: Contents) -> None:
        self._database, self._store = database, store
        self._proven, self._told = False, False

    def __call__(self) -> bool:
        if self._proven:
            return True
        named = workers.witnesses(self._database)
        try:
            found = sum(map(self._store.exists, named))
        except StoreAway:
            return True
        self._proven = 0 < len(named) <= 2 * found
        if named and not self._proven and not self._told:
            log.error("other_store found=%s of=%s advice='set ALLO_STORE_URL as the service has it'", found, len(named))
            self._told = True
        return self._proven or not named
