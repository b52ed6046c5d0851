"""The local store: content under its hash, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.storage import Corrupt, DiskFull, LocalStore, StoreAway, open_store
from service.storage.store import CHUNK
from tests.disk import small_disk

LARGE = os.urandom(2 * CHUNK + 17)
SHA256 = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def blob_path(store: LocalStore, sha256: str) -> Path:
    return next(path for path in store._blobs.rglob("*") if path.name == sha256)


@pytest.mark.parametrize("content", [LARGE, b""])
def test_what_is_taken_is_stored_without_a_copy(store: LocalStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    blob = store.take(tmp_path / "file")
    assert (blob.sha256, blob.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert b"".join(store.open(blob.sha256)) == content
    stored = blob_path(store, blob.sha256).stat()
    assert stored.st_ino == (tmp_path / "file").stat().st_ino
    assert stored.st_mode & 0o777 == 0o400
    (tmp_path / "file").unlink()
    assert b"".join(store.open(blob.sha256)) == content
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_a_folder_that_was_a_mount_and_is_none_any_more_is_away_and_holds_no_less(tmp_path: Path) -> None:
    root, away = tmp_path / "store", tmp_path / "away"
    store = open_store(root.as_uri())
    blob = store.put_stream([LARGE])
    root.rename(away)
    root.mkdir()  # what a mount point is without its mount
    (tmp_path / "file").write_bytes(b"a file")
    asked: list[Callable[[], object]] = [
        lambda: store.exists(blob.sha256),
        lambda: store.size(blob.sha256),
        lambda: store.find(blob.sha256),
        lambda: b"".join(store.open(blob.sha256)),
        lambda: b"".join(store.read_back(blob.sha256)),
        lambda: store.fetch(blob.sha256, tmp_path / "fetched"),
        lambda: store.put_stream([b"new"]),
        lambda: store.put(tmp_path / "file"),
        lambda: store.take(tmp_path / "file"),
        lambda: store.delete(blob.sha256),
        lambda: store.set_aside(blob.sha256, "mark"),
        lambda: list(store.stored()),
        store.tidy,
    ]
    for question in asked:
        with pytest.raises(StoreAway, match="mounted"):
            question()
    assert not any(root.iterdir())
    root.rmdir()
    away.rename(root)
    assert b"".join(store.open(blob.sha256)) == LARGE


def test_what_is_taken_twice_is_stored_once(store: LocalStore, tmp_path: Path) -> None:
    for name in ("one", "other", "other"):
        (tmp_path / name).write_bytes(LARGE) if not (tmp_path / name).exists() else None
        store.take(tmp_path / name)
    assert [blob.sha256 for blob in store.stored()] == [SHA256]
    assert b"".join(store.open(SHA256)) == LARGE
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_fetching_links_a_read_only_file(store: LocalStore, tmp_path: Path) -> None:
    store.put_stream([LARGE])
    target = tmp_path / "a" / "b" / "model.safetensors"
    store.fetch(SHA256, target)
    assert target.read_bytes() == LARGE
    assert target.stat().st_mode & 0o777 == 0o400
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


def damage(path: Path, place: int) -> None:
    """Flips a bit, as a disk does: without a trace in size, time or mode."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("kept", [True, False])
def test_a_part_with_damage_in_its_chunks_is_never_given(store: LocalStore, kept: bool) -> None:
    store.put_stream([LARGE])
    path = blob_path(store, SHA256)
    if not kept:  # as earlier versions left it
        path.with_name(f"{SHA256}.crc").unlink()
        assert b"".join(store.open(SHA256, 5, 9)) == LARGE[5:9]
    damage(path, CHUNK + 3)
    assert b"".join(store.open(SHA256, 0, CHUNK)) == LARGE[:CHUNK]
    for start, end in ((CHUNK, CHUNK + 1), (CHUNK - 1, CHUNK + 1), (1, len(LARGE))):
        with pytest.raises(Corrupt):
            list(store.open(SHA256, start, end))
    path.with_name(f"{SHA256}.crc").unlink()
    with pytest.raises(Corrupt):
        list(store.open(SHA256, 0, 1))


def test_damaged_checksums_are_worked_out_anew(store: LocalStore) -> None:
    store.put_stream([LARGE])
    sums = blob_path(store, SHA256).with_name(f"{SHA256}.crc")
    for content in (bytes(12), b"", b"x"):
        sums.chmod(0o600)
        sums.write_bytes(content)
        assert b"".join(store.open(SHA256, 3, CHUNK + 4)) == LARGE[3 : CHUNK + 4]
        assert sums.stat().st_mode & 0o777 == 0o400


def test_a_blob_stored_again_outlives_who_meant_the_earlier_one(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    store.take(tmp_path / "file")
    (seen,) = store.stored()
    assert (seen.sha256, seen.size) == (SHA256, len(LARGE))
    store.take(tmp_path / "file")
    assert not store.delete(SHA256, seen.mark)
    assert store.exists(SHA256)
    (again,) = store.stored()
    assert store.delete(SHA256, again.mark)
    assert not store.delete(SHA256, again.mark)
    assert [path.name for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()] == []


def test_what_a_dead_writer_left_is_tidied_and_a_living_one_goes_on(store: LocalStore, tmp_path: Path) -> None:
    left = tmp_path / "store" / "incoming" / "left"
    with store.writing() as writer:
        writer.write(b"some")
        left.write_bytes(b"half a blob")
        assert store.tidy() == 0, "it may have a writer that has not locked it yet"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda: left.stat().st_ctime + 61)
            assert store.tidy() == 1
        blob = writer.commit()
    assert b"".join(store.open(blob.sha256)) == b"some"
    assert not left.exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        store = LocalStore(disk / "store")
        store.put_stream([LARGE])
        with pytest.raises(DiskFull):
            store.put_stream([os.urandom(CHUNK)] * 4)
        (tmp_path / "file").write_bytes(os.urandom(3 * CHUNK))
        with pytest.raises(DiskFull):
            store.take(tmp_path / "file")
        assert b"".join(store.open(SHA256)) == LARGE
        names = sorted(path.name for path in disk.rglob("*") if path.is_file())
        assert names == sorted([SHA256, f"{SHA256}.crc", "lock"])


def test_nobody_else_reads_what_is_stored_even_what_was_stored_before(store: LocalStore, tmp_path: Path) -> None:
    store.put_stream([LARGE])
    root = tmp_path / "store"
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    LocalStore(root)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}
    assert {mode for mode in modes.values() if mode & 0o077} == set(), modes


def test_a_writer_that_fails_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.put_stream(broken())
    assert list(store.stored()) == []
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_a_writer_that_is_given_up_halfway_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    with store.writing() as writer:
        for _ in range(8):
            writer.write(bytes(CHUNK))
    assert list(store.stored()) == []
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_many_writers_of_one_content_make_one_blob(store: LocalStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: store.put_stream([LARGE]), range(8)))) == 1
    assert [blob.sha256 for blob in store.stored()] == [SHA256]
    assert not any((tmp_path / "store" / "incoming").iterdir())


def test_a_store_is_opened_by_its_url(tmp_path: Path) -> None:
    open_store((tmp_path / "with space").as_uri()).put_stream([b"x"])
    assert (tmp_path / "with space" / "blobs").is_dir()
    with pytest.raises(ValueError, match="file:///folder"):
        open_store("ftp://host/folder")
