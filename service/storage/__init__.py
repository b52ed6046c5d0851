"""The content-addressed artifact store, behind one protocol: a URL in the settings says which."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.storage.access import S3
from service.storage.local import LocalStore
from service.storage.merged import MergingStore
from service.storage.store import Blob, BlobMissing, Corrupt, DiskFull, Store, StoreAway, StoreError

__all__ = [
    "S3",
    "Blob",
    "BlobMissing",
    "Corrupt",
    "DiskFull",
    "LocalStore",
    "MergingStore",
    "Store",
    "StoreAway",
    "StoreError",
    "open_store",
]


def open_store(url: str, s3: S3 | None = None) -> Store:
    """The store at `url`: `file:///folder`, or `s3://bucket/prefix` reached as `s3` says."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path:
        return MergingStore(LocalStore(Path(unquote(parts.path))))
    if parts.scheme == "s3" and parts.netloc and s3 is not None:
        from service.storage.bucket import Bucket  # here: its client is loaded by whoever uses it
        from service.storage.cache import Cache
        from service.storage.remote import BucketStore

        bucket = Bucket(parts.netloc, parts.path.strip("/"), s3)
        return MergingStore(BucketStore(bucket, Cache(s3.cache, s3.cache_bytes)))
    raise ValueError(f"ALLO_STORE_URL must be file:///folder or s3://bucket/prefix, not {url!r}.")
