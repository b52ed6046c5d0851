"""Questions to a model behind an OpenAI-compatible endpoint (POST <base_url>/chat/completions).

What it answered is kept by the digest of endpoint, model and question, so that no question is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from allo_engine.report import Report, StageError, Stopped
from allo_engine.teacher import TEACHER_KEY, Teacher

ATTEMPTS = 6
"""Times that a question is asked before it counts as failed: over half a minute, by then."""

LONGEST_WAIT = 60.0
"""Seconds between two of them at most, whatever the endpoint asks for."""

TICK = 0.1
"""Seconds within which a stop is heard while it is waited."""

FAILURES = 3
"""So many failed questions in a row, and the endpoint is not there."""

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that another attempt may find gone."""

Answer = dict[str, Any]
"""{text, finish_reason, tokens} of an answer."""


class Asked:
    """Asks questions; `counts` says what became of them. `setting` is where the endpoint is named, `cache` a folder."""

    def __init__(self, teacher: Teacher, key: str | None, cache: Path, report: Report, setting: str) -> None:
        self._teacher, self._cache, self._report, self._setting = teacher, cache, report, setting
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._over = threading.Event()
        self.counts = Counter(dict.fromkeys(("asked", "answered", "cached", "failed", "tokens"), 0))

    def answers(self, questions: Sequence[str]) -> Iterator[str | None]:
        """The text of every question's answer, in order: empty where it was cut, None where there is none.

        Raises Stopped when the report asks to stop, StageError where the endpoint refuses or is not there.
        """
        failures = 0
        with (
            httpx.Client(headers=self._headers, timeout=self._teacher.timeout_seconds) as client,
            ThreadPoolExecutor(self._teacher.concurrency) as pool,
        ):
            asked: list[Future[tuple[str, Answer | None]]] = [
                pool.submit(self._answer, client, question) for question in questions
            ]
            try:
                for future in asked:
                    how, found = future.result()
                    self._count(how, found)
                    failures = failures + 1 if how == "failed" else 0
                    if failures == FAILURES:
                        raise StageError("teacher_unavailable", f"{self._url} does not answer: see the worker's log.")
                    yield None if found is None else _whole(found)
            finally:
                self._over.set()
                for future in asked:
                    future.cancel()

    def _count(self, how: str, answer: Answer | None) -> None:
        self.counts[how] += 1
        if how != "cached":
            self.counts["asked"] += 1
        if answer and how == "answered":
            self.counts["tokens"] += answer["tokens"]

    def _answer(self, client: httpx.Client, question: str) -> tuple[str, Answer | None]:
        """An answer, "cached" or "answered"; none where the question "failed" in all its attempts."""
        body: dict[str, Any] = {"model": self._teacher.model, "messages": [{"role": "user", "content": question}]}
        if self._teacher.max_tokens is not None:
            body["max_tokens"] = self._teacher.max_tokens
        name = hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        if path.exists():
            return "cached", json.loads(path.read_text(encoding="utf-8"))
        found = self._ask(client, body)
        if found is None:
            return "failed", None
        _keep(found, path)
        return "answered", found

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> Answer | None:
        for attempt in range(ATTEMPTS):
            if self._report.stop_requested or self._over.is_set():
                raise Stopped
            wait = 2.0**attempt
            try:
                response = client.post(self._url, json=body)
                wait = _seconds(response.headers.get("retry-after"), wait)
                if response.status_code == httpx.codes.OK:
                    return _read(response.json())
                if response.status_code not in _PASSING:
                    raise StageError("teacher_refused", self._refusal(response))
            except (httpx.TransportError, ValueError, KeyError, IndexError, TypeError):
                pass  # cut off, or no answer in the protocol's form: asked again
            if attempt + 1 < ATTEMPTS:
                self._wait(min(wait, LONGEST_WAIT))
        return None

    def _wait(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            if self._report.stop_requested or self._over.wait(TICK):
                return

    def _refusal(self, response: httpx.Response) -> str:
        remedy = (
            f"set {TEACHER_KEY} in the worker's environment"
            if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
            else f"see {self._setting}"
        )
        return f"{self._url} refused with status {response.status_code}: {remedy}. It said: {response.text[:200]}"

    @property
    def _url(self) -> str:
        return f"{self._teacher.base_url.rstrip('/')}/chat/completions"


def _seconds(asked: str | None, otherwise: float) -> float:
    """What a Retry-After asks for, unless it is a date."""
    return float(asked) if asked and asked.isdecimal() else otherwise


def _read(answer: dict[str, Any]) -> Answer:
    """Raises KeyError, IndexError or TypeError where it is none."""
    choice = answer["choices"][0]
    tokens = (answer.get("usage") or {}).get("total_tokens") or 0
    text = choice["message"]["content"] or ""
    return {"text": str(text), "finish_reason": choice.get("finish_reason"), "tokens": int(tokens)}


def _whole(answer: Answer) -> str:
    """The text; nothing of one that was cut."""
    return "" if answer["finish_reason"] == "length" else str(answer["text"]).strip()


def _keep(answer: Answer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(answer), encoding="utf-8")
    aside.replace(path)
