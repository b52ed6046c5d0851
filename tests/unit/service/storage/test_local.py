"""The local store: content under its hash, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage import BlobMissing, Corrupt, LocalStore, open_store
from service.storage.store import CHUNK

LARGE = os.urandom(2 * CHUNK + 17)
SHA256 = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def blob_path(store: LocalStore, sha256: str) -> Path:
    return next(path for path in store._blobs.rglob("*") if path.name == sha256)


def test_what_is_put_comes_back(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    blob = store.put(tmp_path / "file")
    assert (blob.sha256, blob.size) == (SHA256, len(LARGE))
    assert store.exists(SHA256)
    assert store.size(SHA256) == len(LARGE)
    assert b"".join(store.open(SHA256)) == LARGE
    assert store.put_stream([LARGE[:5], b"", LARGE[5:]]) == blob
    assert (tmp_path / "file").read_bytes() == LARGE


@pytest.mark.parametrize("content", [LARGE, b""])
def test_what_is_taken_is_stored_without_a_copy(store: LocalStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    blob = store.take(tmp_path / "file")
    assert (blob.sha256, blob.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert b"".join(store.open(blob.sha256)) == content
    stored = blob_path(store, blob.sha256).stat()
    assert stored.st_ino == (tmp_path / "file").stat().st_ino
    assert stored.st_mode & 0o777 == 0o444
    (tmp_path / "file").unlink()
    assert b"".join(store.open(blob.sha256)) == content
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_what_is_taken_twice_is_stored_once(store: LocalStore, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(LARGE)
        store.take(tmp_path / name)
    assert blob_path(store, SHA256).stat().st_ino == (tmp_path / "one").stat().st_ino
    assert b"".join(store.open(SHA256)) == LARGE


@given(st.integers(0, len(LARGE) + 5), st.integers(0, len(LARGE) + 5))
def test_a_part_is_that_part(tmp_path_factory: pytest.TempPathFactory, start: int, end: int) -> None:
    store = LocalStore(tmp_path_factory.getbasetemp() / "parts")
    if not store.exists(SHA256):
        store.put_stream([LARGE])
    assert b"".join(store.open(SHA256, start, end)) == LARGE[start:end]


def test_an_empty_blob_is_a_blob(store: LocalStore) -> None:
    blob = store.put_stream([])
    assert b"".join(store.open(blob.sha256)) == b""


def test_fetching_links_a_read_only_file(store: LocalStore, tmp_path: Path) -> None:
    store.put_stream([LARGE])
    target = tmp_path / "a" / "b" / "model.safetensors"
    store.fetch(SHA256, target)
    assert target.read_bytes() == LARGE
    assert target.stat().st_mode & 0o777 == 0o444
    with pytest.raises(FileExistsError):
        store.fetch(SHA256, target)


def test_a_flipped_bit_and_a_cut_file_are_found(store: LocalStore, tmp_path: Path) -> None:
    store.put_stream([LARGE])
    path = blob_path(store, SHA256)
    for damaged in (LARGE[:-1] + bytes([LARGE[-1] ^ 1]), LARGE[:-1], b""):
        path.chmod(0o644)
        path.write_bytes(damaged)
        with pytest.raises(Corrupt):
            store.fetch(SHA256, tmp_path / "out")
        read: list[bytes] = []
        with pytest.raises(Corrupt):
            read.extend(store.open(SHA256))
        assert sum(map(len, read)) < len(LARGE)
        assert not (tmp_path / "out").exists()


def test_a_cut_blob_is_replaced_when_the_content_comes_again(store: LocalStore) -> None:
    store.put_stream([LARGE])
    path = blob_path(store, SHA256)
    path.chmod(0o644)
    path.write_bytes(LARGE[:10])
    store.put_stream([LARGE])
    assert b"".join(store.open(SHA256)) == LARGE


def test_what_is_not_there_is_missing(store: LocalStore, tmp_path: Path) -> None:
    for name in ("0" * 64, "../../etc/passwd", "", "0" * 63 + "/"):
        assert not store.exists(name) if len(name) == 64 and name.isalnum() else True
        with pytest.raises(BlobMissing):
            store.open(name)
        with pytest.raises(BlobMissing):
            store.fetch(name, tmp_path / "out")
    store.delete("0" * 64)


def test_a_writer_that_fails_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.put_stream(broken())
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_many_writers_of_one_content_make_one_blob(store: LocalStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: store.put_stream([LARGE]), range(8)))) == 1
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == [SHA256]


def test_a_store_is_opened_by_its_url(tmp_path: Path) -> None:
    open_store((tmp_path / "with space").as_uri()).put_stream([b"x"])
    assert (tmp_path / "with space" / "blobs").is_dir()
    with pytest.raises(ValueError, match="file:///folder"):
        open_store("ftp://host/folder")
