"""Tells trackers what is due: a thread of the web process for each, and in a process of its own the tracker's library.

That process sees nothing of our settings, nor of the database: it reads what it is to tell, and ends. A tracker that is
away, or a library that hangs, delays its own tellings and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from service.children import NICE, alone, last_words
from service.db import Database
from service.jobs.access import tracking
from service.jobs.access.telling import Telling
from service.jobs.access.trackers import TITLES, place
from service.jobs.access.tracking import News
from service.jobs.errors import InvalidRequest
from service.logs import struck

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AT_ONCE = 4
"""Jobs that one process tells of: its start costs more than they do."""

SECONDS = 60
"""How long the library may take over one job; `tracking.CLAIM` is longer than it may take over all."""

_QUIET = {
    "HF_HUB_OFFLINE": "0",  # trackio's Spaces are there
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
_HASTY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
"""What is tried again is tried again by us."""


class Teller:
    """Use it as a context manager: it tells one tracker, in `folder`, of all that is due while it is open."""

    def __init__(self, database: Database, tracker: str, allowed: str, folder: Path) -> None:
        self._database, self._tracker, self._allowed, self._folder = database, tracker, allowed, folder
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name=f"tell-{tracker}", daemon=True)

    def __enter__(self) -> Teller:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._kill()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self.tell()
            except SQLAlchemyError as error:
                log.warning("database_away error=%r", type(error).__name__)

    def tell(self) -> None:
        """One round of what is due, and the notes of it."""
        found, asked = tracking.take_due(self._database, self._tracker, AT_ONCE), []
        for news in found:
            if news.telling is None:
                tracking.record(self._database, news, None, None)
            else:
                asked.append(news)
        for news, answer in zip(asked, self._answers(asked), strict=True):
            if self._closed.is_set() and "run" not in answer:
                continue  # it was we who went away: the next process tells it
            self._record(news, answer)

    def _record(self, news: News, answer: dict[str, Any]) -> None:
        error = None if "run" in answer else struck(str(answer["error"]))
        tracking.record(self._database, news, answer.get("run"), error)
        if error is not None:
            log.warning("tracker_not_told tracking_id=%s tracker=%s error=%r", news.id, self._tracker, error)

    def _answers(self, asked: Sequence[News]) -> list[dict[str, Any]]:
        """{run} or {error} of each."""
        placed: dict[str, Telling] = {}
        answers: dict[str, dict[str, Any]] = {}
        for news in asked:
            assert news.telling is not None
            try:
                where = place(self._tracker, news.telling.settings, self._allowed)
                placed[news.id] = replace(news.telling, place=where)
            except InvalidRequest as refusal:  # the operator allowed it once
                answers[news.id] = {"error": refusal.message.rstrip(".")}
        if placed:
            answers |= self._told(list(placed.values()))
        return [answers[news.id] for news in asked]

    def _told(self, tellings: Sequence[Telling]) -> dict[str, dict[str, Any]]:
        """What the library's process answered, by the ids; what it left unanswered failed with it."""
        command = [sys.executable, "-m", "service.trackers", self._tracker, str(SECONDS)]
        environment = {**_HASTY, **alone(**_QUIET), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = subprocess.PIPE
        with (self._folder / f"{self._tracker}.log").open("w+") as words:
            with self._lock:
                self._child = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=words, env=environment, cwd=self._folder, text=True,
                    process_group=0,
                )  # fmt: skip
            os.setpriority(os.PRIO_PROCESS, self._child.pid, NICE)
            said = self._heard(self._child, "".join(telling.write() + "\n" for telling in tellings))
            words.seek(0)
            status = self._child.returncode
            slow = f"{TITLES[self._tracker]}'s library took too long"
            ending = slow if status < 0 else last_words(words.read()[-2000:])
        answered = {answer["id"]: answer for answer in map(json.loads, said.splitlines())}
        return {telling.id: answered.get(telling.id, {"error": ending}) for telling in tellings}

    def _heard(self, child: subprocess.Popen[str], given: str) -> str:
        try:
            return child.communicate(given, timeout=(SECONDS + 5) * AT_ONCE)[0]
        except subprocess.TimeoutExpired:
            self._kill()
            return child.communicate()[0]

    def _kill(self) -> None:
        """The library's process and whatever it has started."""
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGKILL)
