"""Blobs in a local folder: `blobs/ab/abcd…`, each written in `incoming/` first and then renamed.

    <root>/incoming/<random>   being written; its writer holds a lock on it, which ends with the writer
    <root>/blobs/ab/abcd…      a blob, read-only: it may be hard-linked
    <root>/blobs/ab/abcd….crc  the checksums of its chunks, where it has several (see checksums.py)
    <root>/recipes/ab/abcd…    a note on a content: how it is made (see merged.py)
    <root>/damaged/abcd…       a damaged blob, out of use
    <root>/lock                shared while a blob gets its name, exclusive while one loses it

Storing a content again puts the new bytes in the place of the old: a damaged blob is healed by it. Nobody but the
service's own user may read any of it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from allo_engine.full import disk_is_full
from service.storage import checksums, passing
from service.storage.behind import BehindWriter
from service.storage.checksums import counted, read_file, verified
from service.storage.store import CHUNK, Blob, BlobMissing, Chunk, Corrupt, DiskFull, StoreAway, Stored, Writer

_NAME = re.compile(r"[0-9a-f]{64}")

_LEFT_SECONDS = 60.0
"""A file in `incoming/` that is younger may not have its writer's lock yet."""

_ASIDE_SECONDS = 30 * 86_400.0
"""For how long the bytes of a damaged blob are kept, at most."""

_Read = Callable[[Path, int], Generator[bytes]]
"""Reads a file from an offset on, chunk by chunk."""


class LocalStore:
    """Blobs in one folder, safe for many processes on one machine. Fulfils `Under`."""

    def __init__(self, root: Path) -> None:
        self._blobs, self._incoming, self._notes = root / "blobs", root / "incoming", root / "recipes"
        self._damaged = root / "damaged"
        root.mkdir(parents=True, exist_ok=True)
        _make_private(root)
        for folder in (self._blobs, self._incoming, self._notes, self._damaged):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = root / "lock"
        self._lock.touch(mode=0o600)

    @property
    def scratch(self) -> Path:
        return self._incoming

    @contextmanager
    def writing(self, cached: bool = False) -> Iterator[Writer]:
        with self._there(), self._aside() as aside, _room(), aside.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with closing(BehindWriter(self.publish, aside, file, cached)) as writer:
                yield writer

    def put(self, path: Path) -> Blob:
        with path.open("rb") as file:
            return self.put_stream(iter(lambda: file.read(CHUNK), b""))

    def take(self, path: Path) -> Blob:
        with self._aside() as aside:
            try:
                os.link(path, aside)
            except OSError:  # another file system, or one without hard links
                return self.put(path)
            with aside.open("rb") as file, _room():
                fcntl.flock(file, fcntl.LOCK_SH)  # whatever is taken twice at once stays readable
                blob, sums = counted(iter(lambda: file.read(CHUNK), b""))
                self.publish(aside, file, blob, sums)
        return blob

    def put_stream(self, chunks: Iterable[bytes]) -> Blob:
        with self.writing(cached=True) as writer:  # a part, or what comes from afar: it is read at once
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    def open(self, sha256: str, start: int = 0, end: int | None = None, once: bool = False) -> Iterator[Chunk]:
        size = self.size(sha256)
        end = size if end is None else min(end, size)
        if size <= CHUNK and (start, end) == (0, size):  # its checksum is not kept
            return verified(read_file(self._path(sha256)), sha256)
        return self._part(sha256, start, end, passing.read if once else read_file)

    def read_back(self, sha256: str) -> Iterator[Chunk]:
        self.size(sha256)
        return verified(passing.read(self._path(sha256)), sha256)

    def fetch(self, sha256: str, destination: Path) -> None:
        self.size(sha256)
        source = self._path(sha256)
        for _ in verified(read_file(source), sha256):
            pass
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, destination)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, destination)
            destination.chmod(0o400)

    def size(self, sha256: str) -> int:
        return self.find(sha256).size

    def exists(self, sha256: str) -> bool:
        with suppress(BlobMissing):
            return bool(self.find(sha256))
        return False

    def find(self, sha256: str) -> Stored:
        path = self._path(sha256)
        try:
            with self._there():
                found = path.stat()
        except FileNotFoundError:
            raise BlobMissing(sha256) from None
        return Stored(sha256, found.st_size, _mark(found), found.st_mtime)

    def stored(self) -> Iterator[Stored]:
        with self._there():
            folders = list(self._blobs.iterdir())
        for folder in folders:
            for entry in os.scandir(folder):
                if _NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        found = entry.stat()
                        yield Stored(entry.name, found.st_size, _mark(found), found.st_mtime)

    def bring(self, sha256: str) -> None:
        """It lies here."""

    def delete(self, sha256: str, mark: str | None = None) -> bool:
        path = self._path(sha256)
        with self._locked(fcntl.LOCK_EX):
            try:
                if mark is not None and _mark(path.stat()) != mark:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
            _sums_of(path).unlink(missing_ok=True)
        return True

    def set_aside(self, sha256: str, mark: str) -> bool:
        path = self._path(sha256)
        with suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):
            if _mark(path.stat()) == mark:
                os.utime(path)  # since when it lies there
                path.replace(self._damaged / path.name)
                _sums_of(path).unlink(missing_ok=True)
                return True
        return False

    def tidy(self) -> int:
        with self._there():
            return sum(map(_removed, self._incoming.iterdir())) + sum(map(self._outlived, self._damaged.iterdir()))

    def note(self, sha256: str, content: bytes) -> None:
        path = self._note_path(sha256)
        with self._there():
            path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._aside() as aside, _room(), aside.open("xb") as file:
            os.fchmod(file.fileno(), 0o400)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            with self._locked(fcntl.LOCK_SH):
                aside.replace(path)
        sync(path.parent)
        sync(self._notes)

    def noted(self, sha256: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self._note_path(sha256).read_bytes()
        return None

    def notes(self) -> Iterator[Stored]:
        for path in self._notes.glob("*/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield Stored(path.name, found.st_size, _mark(found), found.st_mtime)

    def forget_note(self, sha256: str, mark: str | None) -> bool:
        path = self._note_path(sha256)
        with suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):
            if mark in (None, _mark(path.stat())):
                path.unlink()
                return True
        return False

    def publish(self, aside: Path, file: IO[bytes], blob: Blob, sums: array[int]) -> None:
        """Gives a written file its name, in the place of whatever had it."""
        os.fchmod(file.fileno(), 0o400)
        os.utime(file.fileno())
        os.fsync(file.fileno())
        path = self._path(blob.sha256)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._locked(fcntl.LOCK_SH):
            aside.replace(path)
            self._note(path, sums)
        sync(path.parent)
        sync(self._blobs)

    def _outlived(self, damaged: Path) -> bool:
        """Removes a damaged blob that a whole one has replaced, or that nobody came for; whether it did."""
        with suppress(FileNotFoundError):
            if self.exists(damaged.name) or time.time() - damaged.stat().st_mtime >= _ASIDE_SECONDS:
                damaged.unlink()
                return True
        return False

    def _part(self, sha256: str, start: int, end: int, read: _Read) -> Iterator[bytes]:
        """Whole chunks are read and held against their checksums; what was asked for of them is given."""
        first, sums = start - start % CHUNK, self._sums(sha256)
        with closing(read(self._path(sha256), first)) as chunks:
            for place in range(first, end, CHUNK):
                chunk = next(chunks, b"")
                if checksums.of(chunk) != sums[place // CHUNK]:
                    sums = self._count(sha256)  # raises Corrupt, unless it is the checksums that are damaged
                yield chunk[max(start - place, 0) : end - place]

    def _sums(self, sha256: str) -> array[int]:
        """The checksums of the blob's chunks: those that were kept, where they are whole."""
        chunks = -(-self.size(sha256) // CHUNK)
        with suppress(FileNotFoundError):
            kept = checksums.read(_sums_of(self._path(sha256)).read_bytes())
            if len(kept) == chunks:
                return kept
        return self._count(sha256)

    def _count(self, sha256: str) -> array[int]:
        """Works the checksums out from the blob, and keeps them. Raises Corrupt."""
        blob, sums = counted(read_file(self._path(sha256)))
        if blob.sha256 != sha256:
            raise Corrupt(sha256)
        self._note(self._path(sha256), sums)
        return sums

    def _note(self, path: Path, sums: array[int]) -> None:
        """Keeps a blob's checksums. They are neither flushed nor worth an error: they can be worked out again."""
        if len(sums) > 1:
            with suppress(DiskFull), self._aside() as aside, _room():
                aside.write_bytes(checksums.written(sums))
                aside.chmod(0o400)
                aside.replace(_sums_of(path))

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Tells what is not there from a store that is not: a mount point that has lost its mount is empty. Raises
        StoreAway."""
        try:
            yield
        except FileNotFoundError:
            if self._lock.exists():
                raise
            raise StoreAway(f"{self._lock.parent} holds no store any more: is it mounted?") from None

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        aside = self._incoming / uuid.uuid4().hex
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._there(), self._lock.open("rb") as lock:
            fcntl.flock(lock, kind)
            yield

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / check_name(sha256)

    def _note_path(self, sha256: str) -> Path:
        return self._notes / sha256[:2] / check_name(sha256)


def check_name(sha256: str) -> str:
    """Nothing but a hash ever becomes a path. Raises BlobMissing."""
    if not _NAME.fullmatch(sha256):
        raise BlobMissing(sha256)
    return sha256


def _sums_of(path: Path) -> Path:
    return path.with_name(path.name + ".crc")


def _mark(found: os.stat_result) -> str:
    return f"{found.st_ino}.{found.st_mtime_ns}"


def _removed(aside: Path) -> bool:
    """Removes a file that nobody writes any more; whether it did."""
    with suppress(FileNotFoundError, BlockingIOError), aside.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - aside.stat().st_ctime >= _LEFT_SECONDS:
            aside.unlink()
            return True
    return False


@contextmanager
def _room() -> Iterator[None]:
    """Tells a full disk from all else that can happen to files."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise DiskFull(error.errno, error.strerror) from error
        raise


def _make_private(root: Path) -> None:
    """Closes to others what an earlier version left open; the root's own mode says whether that was done."""
    if root.stat().st_mode & 0o077:
        for path in (*root.rglob("*"), root):
            with suppress(FileNotFoundError, PermissionError):  # others may be at work in it, or own it
                path.chmod(path.stat().st_mode & 0o700)


def sync(path: Path) -> None:
    """A file survives a power cut from here on, and the names in a folder do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
