"""A store of each kind, and what is behind it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from service.storage import Store, open_store
from tests.s3 import BUCKET, reached


@dataclass(frozen=True)
class House:
    """A store; `opened()` is the same for another process, on another host where that can be. `change` changes the
    bytes of the one blob that lies there, as disks do."""

    store: Store
    opened: Callable[[], Store]
    change: Callable[[Callable[[bytes], bytes]], None]


@pytest.fixture(params=["folder", "bucket"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "folder":
        return in_folder(tmp_path / "store")
    return in_bucket(request.getfixturevalue("s3_endpoint"), tmp_path)


def in_folder(root: Path) -> House:
    def change(how: Callable[[bytes], bytes]) -> None:
        (path,) = (path for path in (root / "blobs").glob("*/*") if not path.suffix)
        path.chmod(0o600)
        path.write_bytes(how(path.read_bytes()))

    return House(open_store(root.as_uri()), lambda: open_store(root.as_uri()), change)


def in_bucket(endpoint: str, folder: Path) -> House:
    """With nothing else in it."""
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    keys = {"access_key_id": "anyone", "secret_access_key": "anything"}
    inside = S3Store.from_url(url, endpoint=endpoint, client_options={"allow_http": True}, **keys)

    def opened() -> Store:
        return open_store(url, reached(endpoint, folder / uuid.uuid4().hex))

    def change(how: Callable[[bytes], bytes]) -> None:
        paths = [meta["path"] for batch in obstore.list(inside, "blobs") for meta in batch]
        (path,) = (path for path in paths if not path.endswith(".crc"))
        obstore.put(inside, path, how(bytes(obstore.get(inside, path).bytes())))

    return House(opened(), opened, change)
