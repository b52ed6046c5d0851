"""Blobs in a local folder: `blobs/ab/abcd…`, each written in `incoming/` first and then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.storage.store import CHUNK, Blob, BlobMissing, Corrupt

_NAME = re.compile(r"[0-9a-f]{64}")


class LocalStore:
    """A store in one folder, safe for many processes on one machine. Fulfils `Store`."""

    def __init__(self, root: Path) -> None:
        self._blobs, self._incoming = root / "blobs", root / "incoming"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path) -> Blob:
        with path.open("rb") as file:
            return self.put_stream(iter(lambda: file.read(CHUNK), b""))

    def take(self, path: Path) -> Blob:
        aside = self._incoming / uuid.uuid4().hex
        try:
            os.link(path, aside)
        except OSError:  # another file system, or one without hard links
            return self.put(path)
        try:
            blob = _seal(aside)
            self._publish(aside, blob)
        finally:
            aside.unlink(missing_ok=True)
        return blob

    def put_stream(self, chunks: Iterable[bytes]) -> Blob:
        aside = self._incoming / uuid.uuid4().hex
        try:
            blob = _write(aside, chunks)
            self._publish(aside, blob)
        finally:
            aside.unlink(missing_ok=True)
        return blob

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        size = self.size(sha256)
        end = size if end is None else min(end, size)
        chunks = _read(self._path(sha256), start, end)
        return _verified(chunks, sha256) if (start, end) == (0, size) else chunks

    def fetch(self, sha256: str, destination: Path) -> None:
        source = self._path(sha256)
        for _ in self.open(sha256):
            pass  # reading a whole blob verifies it
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, destination)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, destination)
            destination.chmod(0o444)

    def size(self, sha256: str) -> int:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            raise BlobMissing(sha256) from None

    def exists(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def delete(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        if not _NAME.fullmatch(sha256):  # nothing but a hash ever becomes a path
            raise BlobMissing(sha256)
        return self._blobs / sha256[:2] / sha256

    def _publish(self, aside: Path, blob: Blob) -> None:
        """Gives a written file its name, unless a whole blob has it already."""
        path = self._path(blob.sha256)
        if path.is_file() and path.stat().st_size == blob.size:
            return
        path.parent.mkdir(exist_ok=True)
        aside.replace(path)
        _sync_folder(path.parent)
        _sync_folder(self._blobs)


def _write(path: Path, chunks: Iterable[bytes]) -> Blob:
    """Writes, hashes and flushes to the disk; the file ends read-only, because its blob may be hard-linked."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    return Blob(digest.hexdigest(), size)


def _seal(path: Path) -> Blob:
    """Hashes a file that is written already and flushes it to the disk; it ends read-only."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        return Blob(digest.hexdigest(), file.tell())


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(CHUNK, end - start))):
            start += len(chunk)
            yield chunk


def _verified(chunks: Iterator[bytes], sha256: str) -> Iterator[bytes]:
    """Holds each chunk back until the next is read, so that a corrupt blob never ends as if it were whole."""
    digest, held = hashlib.sha256(), b""
    for chunk in chunks:
        digest.update(chunk)
        if held:
            yield held
        held = chunk
    if digest.hexdigest() != sha256:
        raise Corrupt(sha256)
    if held:
        yield held


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
