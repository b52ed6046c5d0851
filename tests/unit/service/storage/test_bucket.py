"""A store in a bucket, when the server is away, slow or cut off, and the folder that keeps what was used last."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from service.storage import StoreAway, open_store
from service.storage.cache import Cache
from service.storage.store import CHUNK, Store
from tests.s3 import BUCKET, Wire, reached, unused_endpoint

LARGE = os.urandom(9 * CHUNK + 5)
SHA256 = hashlib.sha256(LARGE).hexdigest()
SECONDS = 0.5
Open = Callable[..., Store]


@pytest.fixture
def opened(wire: Wire, tmp_path: Path) -> Open:
    """Opens the same store with a folder of that name, over the wire."""
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def opened(folder: str, **more: float) -> Store:
        return open_store(url, reached(wire.endpoint, tmp_path / folder, **more))

    return opened


def test_a_server_that_goes_while_it_is_sent_something_shows_nothing_of_it(wire: Wire, opened: Open) -> None:
    store = opened("ours")
    wire.bytes_left["out"] = 6 * CHUNK
    with pytest.raises(StoreAway, match="does not answer"):
        store.put_stream([LARGE])
    wire.mend()
    assert list(store.stored()) == []
    assert not store.exists(SHA256)
    assert not any(store.scratch.iterdir())
    assert store.put_stream([LARGE]).sha256 == SHA256
    assert b"".join(opened("theirs").open(SHA256)) == LARGE


def test_a_server_that_goes_while_it_is_read_ends_the_reading_and_nothing_false_is_given(
    wire: Wire, opened: Open, tmp_path: Path
) -> None:
    opened("ours").put_stream([LARGE])
    reader, got = opened("theirs"), bytearray()
    wire.bytes_left["in"] = 6 * CHUNK
    with pytest.raises(StoreAway):
        got.extend(itertools.chain.from_iterable(reader.open(SHA256)))
    assert LARGE.startswith(got)
    with pytest.raises(StoreAway):
        reader.fetch(SHA256, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    wire.mend()
    reader.fetch(SHA256, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == LARGE


def test_a_server_that_never_answers_is_given_up_in_time(wire: Wire, opened: Open) -> None:
    opened("ours").put_stream([LARGE])
    store = opened("theirs", seconds=SECONDS)
    wire.frozen = True
    for ask in (lambda: store.exists(SHA256), lambda: list(store.open(SHA256)), lambda: store.put_stream([b"new"])):
        began = time.monotonic()
        with pytest.raises(StoreAway):
            ask()
        assert time.monotonic() - began < 60, "requests have an end; this machine may be slow"
    wire.mend()
    assert store.exists(SHA256)


def test_what_was_used_here_is_readable_while_the_server_is_away(wire: Wire, opened: Open, tmp_path: Path) -> None:
    store = opened("ours")
    store.put_stream([LARGE])
    wire.bytes_left["out"] = 0
    assert b"".join(store.open(SHA256, 7)) == LARGE[7:]
    store.fetch(SHA256, tmp_path / "fetched")
    with pytest.raises(StoreAway):
        store.exists(SHA256)


def test_nobody_at_the_address_and_no_such_bucket_are_told(s3_endpoint: str, tmp_path: Path) -> None:
    for bucket, endpoint in ((BUCKET, unused_endpoint()), ("another", s3_endpoint)):
        store = open_store(f"s3://{bucket}", reached(endpoint, tmp_path / "folder"))
        for ask in (lambda store=store: store.exists(SHA256), lambda store=store: store.put_stream([b"x"])):
            with pytest.raises(StoreAway, match=f"bucket {bucket} does not answer"):
                ask()


def test_damage_in_the_folder_costs_a_request_and_nothing_else(opened: Open, tmp_path: Path) -> None:
    store = opened("ours")
    store.put_stream([LARGE])
    for read in (lambda: b"".join(store.open(SHA256)), lambda: fetched(store, tmp_path / uuid.uuid4().hex)):
        (path,) = (tmp_path / "ours" / "blobs").glob(f"*/{SHA256}")
        path.chmod(0o600)
        path.write_bytes(LARGE[: 3 * CHUNK] + b"?" + LARGE[3 * CHUNK + 1 :])
        assert read() == LARGE
        store.fetch(SHA256, tmp_path / uuid.uuid4().hex)  # brings it again


def fetched(store: Store, path: Path) -> bytes:
    store.fetch(SHA256, path)
    return path.read_bytes()


def test_a_blob_that_leaves_the_folder_while_it_is_read_is_read_on_from_the_bucket(
    opened: Open, tmp_path: Path
) -> None:
    opened("ours").put_stream([LARGE])
    store = opened("theirs")
    store.fetch(SHA256, tmp_path / "fetched")
    chunks = store.open(SHA256, 10)
    Cache(tmp_path / "theirs", 0).empty()
    assert b"".join(chunks) == LARGE[10:]


def test_the_folder_keeps_to_its_size_and_what_was_used_last(opened: Open, tmp_path: Path) -> None:
    writer, store = opened("ours"), opened("theirs", cache_bytes=5 * CHUNK)
    one, other, third = (writer.put_stream([os.urandom(2 * CHUNK)]).sha256 for _ in range(3))
    for name, use in ((one, 1), (other, 2), (one, 3), (third, 4)):
        store.fetch(name, tmp_path / str(use))
    kept = {path.name for path in (tmp_path / "theirs" / "blobs").glob("*/*") if not path.suffix}
    assert kept == {one, third}
    store.fetch(writer.put_stream([LARGE]).sha256, tmp_path / "larger than the folder")
    assert (tmp_path / "larger than the folder").read_bytes() == LARGE
    kept = {path.name for path in (tmp_path / "theirs" / "blobs").glob("*/*") if not path.suffix}
    assert kept == {one, third}


def test_what_is_written_is_kept_too_within_the_size(opened: Open, tmp_path: Path) -> None:
    store = opened("ours", cache_bytes=5 * CHUNK)
    for _ in range(3):
        last = store.put_stream([os.urandom(2 * CHUNK)]).sha256
    kept = {path.name for path in (tmp_path / "ours" / "blobs").glob("*/*") if not path.suffix}
    assert last in kept
    assert len(kept) == 2
