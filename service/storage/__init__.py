"""The content-addressed artifact store, behind one protocol: a URL in the settings says which."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.storage.local import LocalStore
from service.storage.merged import MergingStore
from service.storage.store import Blob, BlobMissing, Corrupt, DiskFull, Store, StoreError

__all__ = [
    "Blob",
    "BlobMissing",
    "Corrupt",
    "DiskFull",
    "LocalStore",
    "MergingStore",
    "Store",
    "StoreError",
    "open_store",
]


def open_store(url: str) -> Store:
    """The store at `url`: `file:///folder`."""
    parts = urlsplit(url)
    if parts.scheme != "file" or not parts.path:
        raise ValueError(f"ALLO_STORE_URL must be file:///folder, not {url!r}.")
    return MergingStore(Path(unquote(parts.path)))
