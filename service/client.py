"""The service as the command line speaks to it: the same HTTP surface that everybody has."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]

_JOBS = "/v1/fine_tuning/jobs"
_SWEEPS = "/v1/fine_tuning/sweeps"
PAGE = 100
"""The most that the service tells of a list at once."""
_CHUNK = 2**20
_PATIENCE = 60
"""Times that a live stream may break without a new event between, a second apart."""

_TIMEOUT = httpx.Timeout(30.0, read=300.0)  # a large file is checked line by line before the answer comes


class ClientError(Exception):
    """What went wrong, in words for the person at the terminal."""


class Client:
    """One service, one key. Use it as a context manager."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"authorization": f"Bearer {api_key}"}
        transport = httpx.HTTPTransport(retries=3)  # connecting alone: no request is sent twice
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def upload(self, path: Path) -> Json:
        """Upload a training file; raises ClientError with every reported line where the service cannot use it."""
        with path.open("rb") as file:
            answer = self._send("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})
        if answer["status"] == "error":
            raise ClientError(f"{path} cannot be used. {answer.get('status_details') or ''}")
        return answer

    def bring(self, path: Path) -> Json:
        """A training file of this content: one that is there to stay, and else uploaded."""
        found = self.get("/v1/files", purpose="fine-tune", sha256=_sha256(path))["data"]
        there = (file for file in found if file["status"] == "processed" and file["expires_at"] is None)
        return next(there, None) or self.upload(path)

    def get(self, path: str, **params: Any) -> Json:
        return self._send("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        return self._send("POST", path, **({} if body is None else {"json": body}))

    def delete(self, path: str) -> Json:
        return self._send("DELETE", path)

    def submit(self, body: Mapping[str, Any]) -> Json:
        return self.post(_JOBS, body)

    def submit_sweep(self, body: Mapping[str, Any]) -> Json:
        return self.post(_SWEEPS, body)

    def estimate_sweep(self, body: Mapping[str, Any]) -> Json:
        return self.post(f"{_SWEEPS}/estimate", body)

    def sweep(self, sweep_id: str) -> Json:
        return self.get(f"{_SWEEPS}/{sweep_id}")

    def cancel_sweep(self, sweep_id: str) -> Json:
        return self.post(f"{_SWEEPS}/{sweep_id}/cancel")

    def sweeps(self, limit: int = 20) -> list[Json]:
        return list(self.get(_SWEEPS, limit=limit)["data"])

    def estimate(self, body: Mapping[str, Any]) -> Json:
        return self.post(f"{_JOBS}/estimate", body)

    def job(self, job_id: str) -> Json:
        return self.get(f"{_JOBS}/{job_id}")

    def compare(self, ours: Sequence[str], theirs: Sequence[str]) -> Json:
        """Models of jobs against others, each JOB or JOB:MODEL."""
        return self.get(f"{_JOBS}/compare", ours=list(ours), theirs=list(theirs))

    def jobs(self, limit: int = 20, status: str | None = None) -> list[Json]:
        """The newest, or the newest of this status."""
        found = (job for job in self._pages(_JOBS) if status in (None, job["status"]))
        return list(islice(found, limit))

    def models(self) -> list[Json]:
        return list(self.get("/v1/models")["data"])

    def workers(self) -> list[Json]:
        """The workers that live; the key must be an admin's."""
        return list(self.get("/v1/workers")["data"])

    def events(self, job_id: str, after: str | None = None) -> Iterator[Json]:
        """The job's events since the event `after`, as they happened."""
        yield from self._pages(f"{_JOBS}/{job_id}/events", after, order="asc")

    def live_events(self, job_id: str) -> Iterator[Json]:
        """The job's events from the first on, as they happen, until it ends; a stream that breaks is taken up again."""
        last, broken = "", 0
        while broken < _PATIENCE:
            headers = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
            try:
                with self._checked(self._http.stream("GET", f"{_JOBS}/{job_id}/events", headers=headers)) as response:
                    for line in response.iter_lines():
                        if line.startswith("data: "):
                            event: Json = json.loads(line.removeprefix("data: "))
                            last, broken = event["id"], 0
                            yield event
                return  # it ended by itself, as the job did
            except ClientError:
                if not last:
                    raise
                broken += 1
                time.sleep(1)
        raise ClientError("The stream broke again and again. `allo events` shows what happened so far.")

    def checkpoints(self, job_id: str) -> list[Json]:
        """The models that the job's stages left, the newest first."""
        return list(self.get(f"{_JOBS}/{job_id}/checkpoints", limit=100)["data"])

    def chat(self, body: Mapping[str, Any]) -> Generator[str, None, None]:
        """A model's answer to a conversation, piece by piece. Whoever closes it is not answered any further."""
        asked = {**body, "stream": True}
        with self._checked(self._http.stream("POST", "/v1/chat/completions", json=asked)) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise ClientError(chunk["error"]["message"])
                    yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])

    def file_content(self, file_id: str) -> bytes:
        """A file's bytes, such as those of a job's result file."""
        with self._checked(self._http.stream("GET", f"/v1/files/{file_id}/content")) as response:
            return bytes(response.read())

    def model_files(self, name: str) -> list[Json]:
        """What a model consists of: {path, bytes, sha256, url} of each file."""
        return list(self.get(f"/v1/models/{quote(name, safe='')}/files")["data"])

    def export(self, name: str, format: str, params: Mapping[str, Any], path: Path) -> bool:
        """Put a model in another form at `path`; False where it is still being made."""
        url, part = f"/v1/models/{quote(name, safe='')}/export/{format}", path.with_name(path.name + ".part")
        with self._checked(self._http.stream("GET", url, params=params)) as response:
            if response.status_code == httpx.codes.ACCEPTED:
                return False
            with part.open("wb") as target:
                for chunk in response.iter_bytes(_CHUNK):
                    target.write(chunk)
        part.replace(path)
        return True

    def download(self, file: Mapping[str, Any], folder: Path, advance: Callable[[int], None]) -> None:
        """Put one file of a model into a folder, going on where an interrupted download stopped, and verify it.

        `advance` is told how many bytes came; bytes that were there already count too.
        """
        path = _inside(folder, file["path"])
        if path.exists() and _sha256(path) == file["sha256"]:
            advance(file["bytes"])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        self._fetch(file, part, advance)
        if _sha256(part) != file["sha256"]:
            part.unlink()
            raise ClientError(f"{file['path']} did not arrive as it was sent: its checksum differs. Download it again.")
        part.replace(path)

    def _fetch(self, file: Mapping[str, Any], part: Path, advance: Callable[[int], None]) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have == file["bytes"]:
            advance(have)
            return
        headers = {"range": f"bytes={have}-", "if-range": f'"{file["sha256"]}"'} if have else {}
        with self._checked(self._http.stream("GET", file["url"], headers=headers)) as response:
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            advance(have if resumed else 0)
            with part.open("ab" if resumed else "wb") as target:
                for chunk in response.iter_bytes(_CHUNK):
                    target.write(chunk)
                    advance(len(chunk))

    def _pages(self, path: str, after: str | None = None, **params: Any) -> Iterator[Json]:
        """All of a list, or all behind `after`, a page at a time."""
        while True:
            page = self.get(path, limit=PAGE, **params, **({"after": after} if after else {}))
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["data"][-1]["id"]

    def _send(self, method: str, path: str, **content: Any) -> Json:
        with self._checked(self._http.stream(method, path, **content)) as response:
            response.read()
            answer = response.json()
        assert isinstance(answer, dict)
        return answer

    def _checked(self, stream: Any) -> Any:
        return _Checked(stream, str(self._http.base_url))


class _Checked:
    """A response that is a success: everything else becomes a ClientError that says what to do."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream, self._url = stream, url

    def __enter__(self) -> httpx.Response:
        try:
            response: httpx.Response = self._stream.__enter__()
        except httpx.TransportError as error:
            raise ClientError(f"Nothing answers at {self._url} ({error}). Start it with `allo up`.") from error
        if response.is_error:
            response.read()
            self._stream.__exit__(None, None, None)
            raise ClientError(_message(response))
        return response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)
        if isinstance(error, httpx.TransportError):
            raise ClientError(f"The connection to {self._url} broke ({error}). Try again.") from error


def _message(response: httpx.Response) -> str:
    """The service's own words, and the field that they are about."""
    try:
        error = response.json()["error"]
        field = f" [{error['param']}]" if error.get("param") else ""
        return f"{error['message']}{field}"
    except (ValueError, KeyError, TypeError):
        return f"The service answered {response.status_code} {response.reason_phrase}."


def _inside(folder: Path, name: str) -> Path:
    """The path of this name in the folder, whatever the service says."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ClientError(f"The service names a file outside of the folder: {name!r}.")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
