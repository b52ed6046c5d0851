"""A client that does what people do, over HTTP, and notes what it was told. What got no answer it says again."""

from __future__ import annotations

import hashlib
import random
import threading
from typing import Any
from urllib.parse import quote

import httpx

from service.chaos.history import History

MODEL = "chaos"
_SECONDS = 5.0
_TRIES = 60
_LATER = (429, 503, 507)
"""What is said again later; a 500 is a violation."""
_MAKING = {"submit": "job", "upload": "file"}
"""What is made, by what it is noted as."""

_CANCELS = 0.3
_JOBS = "/v1/fine_tuning/jobs"


class Visitor(threading.Thread):
    """Submits `jobs` jobs, and now and then pauses, resumes, cancels, uploads and downloads; then it ends."""

    def __init__(self, url: str, key: str, seed: int, jobs: int, history: History) -> None:
        super().__init__(name="visitor", daemon=True)
        headers = {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_SECONDS, trust_env=False)
        self._random, self._seed, self._jobs, self._history = random.Random(seed), seed, jobs, history  # noqa: S311
        self._over = threading.Event()
        self._mine: list[str] = []

    def run(self) -> None:
        """What is done is chosen by the seed alone; when, by the answers too."""
        with self._http:
            file = self._upload()
            for number in range(self._jobs):
                if file is None or self._over.is_set():
                    return
                self._submit(file, number)
                for verb in self._random.choices((self._pause, self._cancel, self._download, self._idle), k=2):
                    verb()
                    self._over.wait(self._random.uniform(0, 0.7))

    def stop(self) -> None:
        """Say nothing again any more."""
        self._over.set()

    def resume_all(self) -> None:
        """Let every job of its own go on; a thread of its own is over by then."""
        with httpx.Client(base_url=self._http.base_url, headers=self._http.headers, timeout=30) as http:
            for job in self._mine:
                answer = http.post(f"{_JOBS}/{job}/resume")
                self._history.note("visitor", "resume", job=job, status=answer.status_code)

    def _upload(self) -> str | None:
        lines = (b'{"problem": "%d + %d", "solution": "%d"}\n' % (self._seed, n, self._seed + n) for n in range(8))
        content = b"".join(lines)
        part = {"file": ("problems.jsonl", content)}
        answer = self._asked("POST", "/v1/files", "upload", data={"purpose": "fine-tune"}, files=part)
        if answer is None:
            return None
        file = str(answer.json()["id"])
        self._read(file, f"/v1/files/{file}/content", hashlib.sha256(content).hexdigest())
        return file

    def _submit(self, file: str, number: int) -> None:
        key = f"{self._seed}-{number}"
        body = {"model": MODEL, "training_file": file, "validation_file": file, "seed": number}
        body |= {"method": {"type": "supervised"}}
        answer = self._asked("POST", _JOBS, "submit", key=key, json=body, headers={"idempotency-key": key})
        if answer is not None:
            self._mine.append(answer.json()["id"])

    def _pause(self) -> None:
        job = self._random.choice(self._mine) if self._mine else None
        if job and self._asked("POST", f"{_JOBS}/{job}/pause", "pause", job=job):
            self._over.wait(self._random.uniform(0, 1))
            self._asked("POST", f"{_JOBS}/{job}/resume", "resume", job=job)

    def _cancel(self) -> None:
        if len(self._mine) > 1 and self._random.random() < _CANCELS:
            job = self._random.choice(self._mine)
            self._asked("POST", f"{_JOBS}/{job}/cancel", "cancel", job=job)

    def _download(self) -> None:
        """Every file of the first job of its own that succeeded."""
        for job in self._mine:
            answer = self._asked("GET", f"{_JOBS}/{job}")
            model = answer and answer.json()["fine_tuned_model"]
            if model:
                listed = self._asked("GET", f"/v1/models/{quote(model, safe='')}/files")
                for file in listed.json()["data"] if listed else ():
                    self._read(f"{model}/{file['path']}", file["url"], file["sha256"])
                return

    def _idle(self) -> None:
        self._asked("GET", _JOBS)

    def _read(self, name: str, path: str, sha256: str) -> None:
        answer = self._asked("GET", path)
        same = answer is not None and hashlib.sha256(answer.content).hexdigest() == sha256
        self._history.note("visitor", "download", name=name, status=answer and answer.status_code, verified=same)

    def _asked(self, method: str, path: str, did: str | None = None, **more: Any) -> httpx.Response | None:
        """The answer; None where it was a refusal, or there was none before the end. What is done, is noted."""
        noted: dict[str, Any] = {name: more.pop(name) for name in ("key", "job") if name in more}
        for _ in range(_TRIES):
            try:
                answer = self._http.request(method, path, **more)
            except httpx.HTTPError:
                answer = None
            if did is not None:
                if did in _MAKING and answer is not None and answer.is_success:
                    noted[_MAKING[did]] = answer.json()["id"]
                self._history.note("visitor", did, **noted, status=answer and answer.status_code)
            if answer is not None and answer.status_code not in _LATER:
                return answer if answer.is_success else None
            if self._over.wait(0.5):
                break
        return None
