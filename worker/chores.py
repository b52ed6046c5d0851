"""What the leader does beside leading, each in a thread of its own: however long it takes, no stage waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from service.storage.store import StoreError

log = logging.getLogger(__name__)


class Chores:
    """Does them every so many seconds, while this process leads."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._leads = threading.Event()

    def add(self, name: str, look: Callable[[], Any]) -> None:
        """One more; what it did is logged under its `name`, unless that is nothing."""
        threading.Thread(target=self._run, args=(name, look), name=name, daemon=True).start()

    def tell(self, leads: bool) -> None:
        """Say whether this process leads."""
        if leads:
            self._leads.set()
        else:
            self._leads.clear()

    def _run(self, name: str, look: Callable[[], Any]) -> None:
        while True:
            self._leads.wait()
            try:
                did = vars(look())
            except (SQLAlchemyError, StoreError, OSError) as error:
                log.warning("chore_failed chore=%s error=%r", name, error)
            else:
                if any(did.values()):
                    log.info("chore_done chore=%s did=%s", name, " ".join(f"{part}={n}" for part, n in did.items()))
            time.sleep(self._every)
