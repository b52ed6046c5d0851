"""A store that says at once that it does not know yet: for a loop that has other things to do than to wait for it."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, wait

from service.jobs.presence import Contents
from service.storage.store import StoreAway

log = logging.getLogger(__name__)

_MOST = 4
"""Questions that are open at once: a store that answers none of these answers no other."""


class Prompt:
    """Fulfils `Contents` over a store that may take long: each question is asked by a thread that is waited for so many
    `seconds`. For `fresh` seconds its answer is good for whoever comes again. When the store goes, and when it is back,
    is logged once, however many ask."""

    def __init__(self, contents: Contents, seconds: float = 1.0, fresh: float = 60.0) -> None:
        self._contents, self._seconds, self._fresh = contents, seconds, fresh
        self._asked: dict[str, tuple[float, Future[bool]]] = {}
        self._away: float | None = None

    def exists(self, sha256: str) -> bool:
        """Whether the content is there. Raises StoreAway where the answer takes longer than `seconds`, or others do
        already: whoever comes again later may find it."""
        try:
            asked, answer = self._answer(sha256)
        except StoreAway as error:
            if self._away is None:
                log.warning("store_away error=%s", error)
            self._away = time.monotonic()
            raise
        if self._away is not None and asked > self._away:
            log.info("store_back")
            self._away = None
        return answer

    def _answer(self, sha256: str) -> tuple[float, bool]:
        """When it was asked, and what the answer was."""
        now = time.monotonic()
        self._asked = {
            name: (at, answer)
            for name, (at, answer) in self._asked.items()
            if not answer.done() or (now - at < self._fresh and answer.exception() is None)
        }
        late = sum(not answer.done() for _, answer in self._asked.values())
        if sha256 not in self._asked:
            if late >= _MOST:
                raise StoreAway("it has not answered yet")
            self._asked[sha256] = now, Future()
            self._ask(sha256)
        asked, answer = self._asked[sha256]
        wait([answer], 0 if late else self._seconds)
        if not answer.done():
            raise StoreAway("it has not answered yet")
        return asked, answer.result()

    def _ask(self, sha256: str) -> None:
        _, answer = self._asked[sha256]

        def ask() -> None:
            try:
                answer.set_result(self._contents.exists(sha256))
            except BaseException as error:  # it is for whoever asked
                answer.set_exception(error)

        threading.Thread(target=ask, name="asking", daemon=True).start()
