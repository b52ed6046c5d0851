"""Brings what is due: a thread of the web process. Of several processes each takes what no other has taken."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.jobs.access import webhooks
from service.jobs.access.webhooks import Due, Verdict

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AT_ONCE = 8
"""Deliveries under way at a time: one receiver that never answers holds up one of them, for `SECONDS`."""

_PRUNE_SECONDS = 3600.0
_GONE = 410


class Courier:
    """Use it as a context manager: it brings while it is open."""

    def __init__(self, database: Database, private: bool) -> None:
        self._database, self._private = database, private
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Courier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        pruned = -_PRUNE_SECONDS
        with ThreadPoolExecutor(AT_ONCE, "delivery") as pool:
            while not self._closed.wait(LOOK_SECONDS):
                try:
                    for _ in pool.map(self.deliver, webhooks.take_due(self._database, AT_ONCE)):
                        pass
                    if time.monotonic() - pruned >= _PRUNE_SECONDS:
                        webhooks.prune(self._database)
                        pruned = time.monotonic()
                except SQLAlchemyError as error:
                    log.warning("database_away error=%r", type(error).__name__)

    def deliver(self, due: Due) -> None:
        """One attempt, and the note of it."""
        from service.webhooks.sending import Undelivered, send  # here: many services never send

        status, error = None, None
        try:
            status = send(due.url, due.secrets, due.id, self._database.now(), due.body, self._private)
        except Undelivered as reason:
            error = str(reason)
        verdict = _verdict(status)
        webhooks.record(self._database, due, status, error, verdict)
        log.info("webhook_sent delivery_id=%s attempt=%s status=%s verdict=%s", due.id, due.attempt, status, verdict)


def _verdict(status: int | None) -> Verdict:
    """A redirect is no delivery: whoever could answer with one could send us anywhere."""
    if status is not None and 200 <= status < 300:
        return "delivered"
    return "gone" if status == _GONE else "again"
