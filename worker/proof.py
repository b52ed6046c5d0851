"""Whether a worker reads the service's store: with another one it would fail whatever it is given, and lose what it
made."""

from __future__ import annotations

import logging

from service.db import Database
from service.jobs.data.marking import proven, witnesses
from service.jobs.presence import Contents
from service.storage.store import StoreAway

log = logging.getLogger(__name__)


class Proof:
    """True once a store has the service's marker. Until then it is asked anew. Of a store that does not answer, or a
    database that names nothing yet, the best is believed."""

    def __init__(self, database: Database, store: Contents) -> None:
        self._database, self._store = database, store
        self._proven, self._told = False, False

    def __call__(self) -> bool:
        if self._proven:
            return True
        named = witnesses(self._database)
        try:
            found = sum(map(self._store.exists, named))
        except StoreAway:
            return True
        self._proven = proven(named, found)
        if named and not self._proven and not self._told:
            log.error("other_store found=%s of=%s advice='set ALLO_STORE_URL as the service has it'", found, len(named))
            self._told = True
        return self._proven or not named
