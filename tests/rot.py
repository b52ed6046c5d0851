"""Rot: what disks do to bytes that nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.storage.local import LocalStore
from service.storage.merged import MergingStore
from service.storage.store import Store


def flip_a_bit(store: Store, sha256: str) -> None:
    """In the middle of a stored content, behind the store's back."""
    path = path_of(store, sha256)
    mode, content = path.stat().st_mode, bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)


def path_of(store: Store, sha256: str) -> Path:
    """Where a content lies in a folder."""
    assert isinstance(store, MergingStore)
    if not isinstance(store._under, LocalStore):
        pytest.skip("this damage is done in folders: the store is elsewhere")
    return store._under._path(sha256)
