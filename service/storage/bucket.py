"""Contents in an S3-compatible bucket, each under its sha256:

    <prefix>/blobs/<sha256>/<version>        a blob, written under a name that nothing had before
    <prefix>/blobs/<sha256>/<version>.crc    the checksums of its chunks, where it has several (see checksums.py)
    <prefix>/recipes/<sha256>/<version>      how a content is made

Nothing is ever overwritten: storing a content again adds a version, and then takes away those that were there before.
Deleting names the versions that it means, so it cannot hit one that came meanwhile. This needs neither a lock nor a
clock that two machines agree on, nor more of a server than that a list has what was written before.

The client is obstore: a few megabytes of Rust, which sends large files in parts, retries, ends every request in time
and leaves the interpreter free meanwhile. s3fs would bring aiobotocore, an event loop of its own and its pins.
"""

from __future__ import annotations

import time
import uuid
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Literal

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.storage import checksums
from service.storage.access import S3
from service.storage.store import CHUNK, Blob, BlobMissing, StoreAway, Stored

Kind = Literal["blobs", "recipes"]

PIECE = 4 * CHUNK
"""Bytes asked for in one request."""

_AT_ONCE = 3
"""Pieces of one content on their way at once."""

_PART, _PARTS = 8 * CHUNK, 9_000
"""Bytes of a part of an upload, where that makes no more parts than S3 takes (10,000)."""

_RETRIES = 3
_CONNECT_SECONDS = 5.0
_SUMS = ".crc"

_Meta = tuple[str, int]
"""A path in the bucket, and the bytes that lie there."""


@dataclass(frozen=True)
class Found:
    """A content as it lies in the bucket: the newest of its `versions`."""

    kind: Kind
    sha256: str
    size: int
    versions: Sequence[str]
    has_sums: bool

    @property
    def mark(self) -> str:
        return "+".join(self.versions)

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.sha256}/{self.versions[-1]}"


class Bucket:
    """Every method may raise StoreAway."""

    def __init__(self, name: str, prefix: str, s3: S3) -> None:
        self._name = name
        limit = timedelta(seconds=s3.seconds)
        keys = {"access_key_id": s3.access_key, "secret_access_key": s3.secret_key, "session_token": s3.session_token}
        place = {"endpoint": s3.endpoint, "region": s3.region or "us-east-1"}
        self._store = S3Store(
            name,
            prefix=prefix or None,
            config={key: value for key, value in (keys | place).items() if value},  # type: ignore[arg-type]
            checksum_algorithm="SHA256",
            client_options={
                "timeout": limit,
                "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, s3.seconds)),
                "allow_http": s3.endpoint.startswith("http://"),
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": limit,
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
            },
        )

    def find(self, kind: Kind, sha256: str) -> Found | None:
        """The content, where it is there."""
        return _found(kind, sha256, self._listed(f"{kind}/{sha256}"))

    def all(self, kind: Kind) -> Iterator[Found]:
        """Every content of the kind."""
        for sha256, metas in groupby(self._listed(kind), lambda meta: meta[0].split("/")[-2]):
            if found := _found(kind, sha256, metas):
                yield found

    def send(self, kind: Kind, sha256: str, content: Path | bytes, sums: array[int] | None = None) -> None:
        """Stores the content; returns once it is there for everyone."""
        before = self.find(kind, sha256)
        version = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        path = f"{kind}/{sha256}/{version}"
        with self._reached():
            if sums is not None and len(sums) > 1:
                obstore.put(self._store, path + _SUMS, checksums.written(sums))
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            part = max(_PART, -(-size // _PARTS))
            obstore.put(
                self._store, path, content, chunk_size=part, use_multipart=size > part, max_concurrency=_AT_ONCE
            )
        if before is not None:
            self._remove(before)

    def pieces(self, found: Found, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in order and some at a time. Raises BlobMissing."""
        spans = [(place, min(place + PIECE, end)) for place in range(start, end, PIECE)]
        return _in_turn([lambda span=span: self.read(found, *span) for span in spans])  # type: ignore[misc]

    def read(self, found: Found, start: int, end: int) -> bytes:
        """The bytes of one part. Raises BlobMissing."""
        while True:
            with self._reached(), suppress(FileNotFoundError):
                return bytes(obstore.get_range(self._store, found.path, start=start, end=end))
            again = self.find(found.kind, found.sha256)  # stored anew since it was found, or deleted
            if again is None or again.path == found.path:
                raise BlobMissing(found.sha256)
            found = again

    def sums(self, found: Found) -> array[int]:
        """The checksums that are kept of its chunks; none where they are missing."""
        with self._reached(), suppress(FileNotFoundError):
            return checksums.read(bytes(obstore.get(self._store, found.path + _SUMS).bytes()))
        return array("I")

    def note_sums(self, found: Found, sums: array[int]) -> None:
        with self._reached():
            obstore.put(self._store, found.path + _SUMS, checksums.written(sums))

    def delete(self, kind: Kind, sha256: str, mark: str | None) -> bool:
        """Takes away what is there, or the versions of this mark alone; whether nothing is left of it."""
        found = self.find(kind, sha256)
        if found is None or mark not in (None, found.mark):
            return False
        self._remove(found)
        return self.find(kind, sha256) is None

    def _remove(self, found: Found) -> None:
        with self._reached():
            for version in found.versions:
                path = f"{found.kind}/{found.sha256}/{version}"
                for name in (path, path + _SUMS):
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, name)

    def _listed(self, folder: str) -> Iterator[_Meta]:
        with self._reached():
            for batch in obstore.list(self._store, f"{folder}/"):
                yield from ((meta["path"], meta["size"]) for meta in batch)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Tells a server that is away, or refuses us, from all else; a bucket that is not there is one of those."""
        try:
            yield
        except StoreAway:
            raise
        except (BaseError, OSError) as error:
            raise StoreAway(f"The bucket {self._name} does not answer as it should: {_first_line(error)}") from error


def as_stored(found: Found) -> Stored:
    written, _, _ = found.versions[-1].partition("-")
    return Stored(found.sha256, found.size, found.mark, int(written) / 1e9 if written.isdigit() else 0.0)


def as_blob(found: Found) -> Blob:
    return Blob(found.sha256, found.size)


def _found(kind: Kind, sha256: str, metas: Iterable[_Meta]) -> Found | None:
    sizes = {path.rpartition("/")[2]: size for path, size in metas}
    versions = sorted(name for name in sizes if not name.endswith(_SUMS))
    if not versions:
        return None
    return Found(kind, sha256, sizes[versions[-1]], versions, versions[-1] + _SUMS in sizes)


def _in_turn(calls: Sequence[Callable[[], bytes]]) -> Iterator[bytes]:
    """What the calls return, in their order; some of them are under way at once."""
    if len(calls) == 1:
        yield calls[0]()
        return
    hands, coming = ThreadPoolExecutor(_AT_ONCE), deque[Future[bytes]]()
    try:
        for call in calls:
            coming.append(hands.submit(call))
            if len(coming) == _AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        hands.shutdown(wait=False, cancel_futures=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
