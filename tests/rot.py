"""Rot: what disks do to bytes that nobody reads, in folders and in buckets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import obstore

from service.storage.local import LocalStore
from service.storage.merged import MergingStore
from service.storage.remote import BucketStore
from service.storage.store import Store


def flip_a_bit(store: Store, sha256: str) -> None:
    """In the middle of a stored content, behind the store's back."""
    rewrite(store, sha256, lambda content: flipped(content, len(content) // 2))


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def rewrite(store: Store, sha256: str, change: Callable[[bytes], bytes]) -> None:
    """Change what lies there, behind the store's back. Of what this machine has of a bucket nothing is left."""
    match _under(store):
        case BucketStore() as under:
            under._cache.delete(sha256)
            found = under._find(sha256)
            obstore.put(under._bucket._store, found.path, change(under._bucket.read(found, 0, found.size)))
        case LocalStore() as under:
            path = under._path(sha256)
            mode = path.stat().st_mode
            path.chmod(0o600)
            path.write_bytes(change(path.read_bytes()))
            path.chmod(mode)


def age(store: Store, sha256: str, seconds: int) -> None:
    """As if a small content had been stored so long before."""
    match _under(store):
        case BucketStore() as under:
            found = under._find(sha256)
            written, _, name = found.versions[-1].partition("-")
            older = f"{found.kind}/{sha256}/{int(written) - seconds * 10**9:020d}-{name}"
            obstore.rename(under._bucket._store, found.path, older)
        case LocalStore() as under:
            path: Path = under._path(sha256)
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def lies_there(store: Store, sha256: str) -> bool:
    """Whether the content's own bytes are stored: it is not made of others when it is read."""
    return _under(store).exists(sha256)


def _under(store: Store) -> LocalStore | BucketStore:
    assert isinstance(store, MergingStore)
    assert isinstance(store._under, LocalStore | BucketStore)
    return store._under
