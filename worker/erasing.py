"""The leader erases what nobody holds, in a thread of its own: however much there is, no stage waits for it."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from service.jobs.data.erasing import Eraser
from service.storage.store import StoreError

log = logging.getLogger(__name__)


class Erasing:
    """Looks every so many seconds, while this process leads."""

    def __init__(self, eraser: Eraser, every: float) -> None:
        self._eraser, self._every = eraser, every
        self._leads = threading.Event()
        threading.Thread(target=self._run, name="erasing", daemon=True).start()

    def tell(self, leads: bool) -> None:
        """Say whether this process leads."""
        if leads:
            self._leads.set()
        else:
            self._leads.clear()

    def _run(self) -> None:
        while True:
            self._leads.wait()
            try:
                erased = self._eraser.look()
            except (SQLAlchemyError, StoreError, OSError) as error:
                log.warning("erasing_failed error=%r", error)
            else:
                if any(vars(erased).values()):
                    log.info("erased %s", " ".join(f"{name}={count}" for name, count in vars(erased).items()))
            time.sleep(self._every)
