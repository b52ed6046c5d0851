"""What every store does, wherever its bytes lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo_engine.checkpoints.recipe import Recipe
from service.jobs.data.scrubbing import damage_in
from service.storage import Blob, BlobMissing, Corrupt, open_store
from service.storage.store import CHUNK
from tests.unit.service.storage.conftest import House, in_bucket

LARGE = os.urandom(5 * CHUNK + 17)
SHA256 = hashlib.sha256(LARGE).hexdigest()
ABSENT = "0" * 64


def flipped(place: int):
    """What turns a bit over, without a trace in the size."""
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_what_is_put_comes_back_to_everyone(house: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    store = house.store
    blob = store.put(tmp_path / "file")
    assert (blob.sha256, blob.size) == (SHA256, len(LARGE))
    assert store.put_stream([LARGE[:5], b"", LARGE[5:]]) == store.take(tmp_path / "file") == blob
    with store.writing() as writer:
        assert writer.write(LARGE[: 2 * CHUNK + 5]) + writer.write(LARGE[2 * CHUNK + 5 :]) == len(LARGE)
        assert writer.commit() == blob
    assert (tmp_path / "file").read_bytes() == LARGE
    for reader in (store, house.opened()):
        assert reader.exists(SHA256)
        assert reader.size(SHA256) == len(LARGE)
        assert b"".join(reader.open(SHA256)) == LARGE
        assert [(blob.sha256, blob.size) for blob in reader.stored()] == [(SHA256, len(LARGE))]
    house.opened().fetch(SHA256, tmp_path / "new" / "fetched")
    assert (tmp_path / "new" / "fetched").read_bytes() == LARGE
    assert (tmp_path / "new" / "fetched").stat().st_mode & 0o777 == 0o400
    with pytest.raises(FileExistsError):
        store.fetch(SHA256, tmp_path / "new" / "fetched")


def test_an_empty_blob_is_a_blob(house: House, tmp_path: Path) -> None:
    blob = house.store.put_stream([])
    assert blob.size == 0
    assert b"".join(house.opened().open(blob.sha256)) == b""
    house.opened().fetch(blob.sha256, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b""


def test_what_is_not_there_is_missing(house: House, tmp_path: Path) -> None:
    for name in (ABSENT, "../../etc/passwd", "", "0" * 63 + "/"):
        for ask in (house.store.open, house.store.size, lambda name: house.store.fetch(name, tmp_path / "out")):
            with pytest.raises(BlobMissing):
                ask(name)
    assert not house.store.exists(ABSENT)
    assert not house.store.delete(ABSENT)
    assert house.store.made_of(ABSENT) == []


def test_nothing_is_there_before_the_writer_commits(house: House) -> None:
    def broken() -> Iterator[bytes]:
        yield LARGE
        raise OSError("it ended")

    with house.store.writing() as writer:
        writer.write(LARGE)
        assert not house.opened().exists(SHA256)
    with pytest.raises(OSError, match="ended"):
        house.store.put_stream(broken())
    assert list(house.store.stored()) == []
    assert not any(house.store.scratch.iterdir())
    with house.store.writing() as writer:
        writer.write(LARGE)
        assert writer.commit() == Blob(SHA256, len(LARGE))
    assert house.opened().exists(SHA256)


@pytest.mark.parametrize("size", [1000, CHUNK - 1, 2 * CHUNK + 7])
def test_pieces_of_any_size_are_one_content_in_their_order(house: House, size: int) -> None:
    blob = house.store.put_stream(LARGE[place : place + size] for place in range(0, len(LARGE), size))
    assert blob.sha256 == SHA256
    reader = house.opened()
    assert b"".join(reader.open(SHA256, CHUNK + 1, 4 * CHUNK)) == LARGE[CHUNK + 1 : 4 * CHUNK]
    assert b"".join(reader.open(SHA256)) == LARGE


@pytest.mark.parametrize("content", [LARGE, b"short"])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_is_found_and_healed_when_the_content_comes_again(
    house: House, content: bytes, how: str, tmp_path: Path
) -> None:
    sha256 = house.store.put_stream([content]).sha256
    house.change(flipped(len(content) - 1) if how == "flipped" else lambda data: data[:-1])
    read: list[bytes] = []
    with pytest.raises(Corrupt):
        read.extend(house.opened().open(sha256))
    assert sum(map(len, read)) < len(content)
    with pytest.raises(Corrupt):
        house.opened().fetch(sha256, tmp_path / "out")
    house.store.put_stream([content])
    assert b"".join(house.opened().open(sha256)) == content


@pytest.mark.parametrize("content", [LARGE, b"short"])
def test_reading_back_finds_damage_in_the_store_itself_though_a_whole_copy_is_at_hand(
    house: House, content: bytes
) -> None:
    sha256 = house.store.put_stream([content]).sha256
    assert b"".join(house.store.read_back(sha256)) == content
    house.change(flipped(len(content) // 2))
    assert damage_in(house.store, sha256) == sha256
    assert house.store.set_aside(sha256, house.store.find(sha256).mark)
    for store in (house.store, house.opened()):
        with pytest.raises(BlobMissing):
            store.read_back(sha256)
    house.store.put_stream([content])
    assert damage_in(house.store, sha256) is None


def test_a_part_with_damage_in_its_chunks_is_never_given(house: House) -> None:
    house.store.put_stream([LARGE])
    house.change(flipped(CHUNK + 3))
    reader = house.opened()
    assert b"".join(reader.open(SHA256, 0, CHUNK)) == LARGE[:CHUNK]
    assert b"".join(reader.open(SHA256, 3 * CHUNK + 5)) == LARGE[3 * CHUNK + 5 :]
    for start, end in ((CHUNK, CHUNK + 1), (CHUNK - 1, CHUNK + 1), (1, len(LARGE))):
        with pytest.raises(Corrupt):
            list(reader.open(SHA256, start, end))


def test_a_blob_stored_again_outlives_who_meant_the_earlier_one(house: House) -> None:
    for content in (LARGE, b"short"):
        sha256 = house.store.put_stream([content]).sha256
        (seen,) = house.opened().stored()
        assert (seen.sha256, seen.size) == (sha256, len(content))
        house.store.put_stream([content])
        assert not house.opened().delete(sha256, seen.mark)
        assert b"".join(house.opened().open(sha256)) == content
        (again,) = house.store.stored()
        assert house.opened().delete(sha256, again.mark)
        assert not house.store.delete(sha256, again.mark)
        assert not house.store.exists(sha256)


def test_many_writers_of_one_content_make_one_blob(house: House) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: house.opened().put_stream([LARGE]), range(8)))) == 1
    assert [blob.sha256 for blob in house.store.stored()] == [SHA256]
    assert b"".join(house.opened().open(SHA256)) == LARGE
    assert house.store.delete(SHA256)
    assert not house.store.exists(SHA256)


def test_a_made_content_is_kept_with_what_it_is_made_of(house: House) -> None:
    base = house.store.put_stream([LARGE])
    house.store.derive(Blob(ABSENT, 5), Recipe(base.sha256, None, "BF16"))
    reader = house.opened()
    assert reader.exists(ABSENT)
    assert reader.size(ABSENT) == 5
    assert reader.recipe(ABSENT) == Recipe(base.sha256, None, "BF16")
    assert reader.recipe(base.sha256) is None
    assert reader.made_of(ABSENT) == [base.sha256]
    assert sorted(blob.sha256 for blob in reader.stored()) == [ABSENT, base.sha256]
    assert not reader.delete(base.sha256)
    (note,) = (blob for blob in reader.stored() if blob.sha256 == ABSENT)
    assert reader.delete(ABSENT, note.mark)
    assert reader.delete(base.sha256)
    assert not reader.exists(ABSENT)


places = st.integers(0, len(LARGE) + 5)


@given(places, places)
def test_a_part_is_that_part_in_a_folder(tmp_path_factory: pytest.TempPathFactory, start: int, end: int) -> None:
    store = open_store((tmp_path_factory.getbasetemp() / "parts").as_uri())
    if not store.exists(SHA256):
        store.put_stream([LARGE])
    assert b"".join(store.open(SHA256, start, end)) == LARGE[start:end]


@pytest.fixture(scope="module")
def far(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A large blob in a bucket, of which nothing lies here."""
    house = in_bucket(s3_endpoint, tmp_path_factory.mktemp("far"))
    house.store.put_stream([LARGE])
    return House(house.opened(), house.opened, house.change)


@given(start=places, end=places)
def test_a_part_is_that_part_in_a_bucket(far: House, start: int, end: int) -> None:
    assert b"".join(far.store.open(SHA256, start, end)) == LARGE[start:end]
