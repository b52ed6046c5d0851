"""Uploads in parts: begun, added to, completed to a file or cancelled. Whatever is sent twice is done once.

A part is stored as it arrives. Completing reads the parts once, in the order asked for, and checks and stores the file
on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.datasets.validation import LineProblem
from service.db import Database
from service.jobs.data import files, quota
from service.jobs.data.files import FileLimits, NewFile
from service.jobs.errors import Conflict, InvalidRequest, NotFound, TooLarge
from service.jobs.ids import new_id
from service.jobs.repository import holdings
from service.jobs.tables import File, Upload, UploadPart
from service.storage.store import Blob, Store

MAX_PARTS = 10_000


@dataclass(frozen=True)
class NewUpload:
    """An upload as it is asked for. `lifetime` is the file's, in seconds."""

    owner: str
    bytes: int
    filename: str
    mime_type: str
    lifetime: int | None = None


@dataclass(frozen=True)
class UploadView:
    """An upload; once it is completed, with its file, while that is there. Without problems the file can be trained
    on."""

    upload: Upload
    file: File | None = None
    problems: tuple[LineProblem, ...] = ()


def begin(database: Database, new: NewUpload, limits: FileLimits, seconds: float, max_owner_bytes: int = 0) -> Upload:
    """An upload that takes parts for `seconds`. Raises TooLarge or QuotaExceeded."""
    if new.bytes > limits.bytes:
        raise TooLarge(f"bytes: this service takes files of up to {limits.bytes} bytes.", "bytes")
    now = database.now()
    upload = Upload(id=new_id("upload"), owner=new.owner, bytes=new.bytes, filename=new.filename[-255:])
    upload.mime_type, upload.lifetime, upload.purpose = new.mime_type, new.lifetime, files.PURPOSE
    upload.status, upload.created_at, upload.expires_at = "pending", now, now + int(seconds)
    with database.transaction() as session:
        session.add(upload)
        quota.check(session, new.owner, max_owner_bytes, now)
        return upload


def read(database: Database, owner: str, upload_id: str) -> UploadView:
    """The upload. Raises NotFound."""
    with database.snapshot() as session:
        upload = _owned(session, owner, upload_id)
        return UploadView(upload, holdings.file_of(session, upload))


def read_parts(database: Database, owner: str, upload_id: str) -> Sequence[UploadPart]:
    """What has arrived, in the order in which it did; nothing once the upload has ended. Raises NotFound."""
    with database.snapshot() as session:
        return holdings.parts(session, _owned(session, owner, upload_id).id)


def check_open(database: Database, owner: str, upload_id: str) -> None:
    """Raises NotFound, or Conflict for an upload that takes no parts any more."""
    with database.snapshot() as session:
        _check_pending(_owned(session, owner, upload_id), database.now())


def take_part(store: Store, chunks: Iterator[bytes], limit: int) -> Blob:
    """Stores a part of up to `limit` bytes. Raises TooLarge or InvalidRequest, and what `chunks` raises."""
    return store.put_stream(_limited(chunks, limit))


def add_part(database: Database, owner: str, upload_id: str, blob: Blob) -> UploadPart:
    """Makes a content that is stored a part. Raises NotFound or Conflict."""
    with database.transaction() as session:
        upload = holdings.lock_upload(session, _owned(session, owner, upload_id).id)
        _check_pending(upload, database.now())
        _check_room(upload, holdings.parts(session, upload.id), blob.size)
        part = UploadPart(id=new_id("part"), upload_id=upload.id, bytes=blob.size, sha256=blob.sha256)
        part.created_at = database.now()
        session.add(part)
        return part


def complete(
    database: Database,
    store: Store,
    owner: str,
    upload_id: str,
    part_ids: Sequence[str],
    md5: str | None,
    limits: FileLimits,
) -> UploadView:
    """Makes the parts a file, in this order. The same once more is the same file.

    Raises NotFound, Conflict for an upload that has ended otherwise, InvalidRequest where the parts are not the
    upload's, or not its size or `md5`."""
    with database.snapshot() as session:
        upload = _owned(session, owner, upload_id)
        if upload.status == "completed":
            return _completed(session, upload, part_ids)
        _check_pending(upload, database.now())
        parts = _chosen(upload, holdings.parts(session, upload.id), part_ids)
    content = files.take_in(store, _joined(store, parts, md5), limits)
    with database.transaction() as session:
        upload = holdings.lock_upload(session, upload.id)
        if upload.status == "completed":  # by the same request, which was sent again meanwhile
            return _completed(session, upload, part_ids)
        _check_pending(upload, database.now())
        file = files.new_file(NewFile(owner, upload.filename, upload.lifetime), content, database.now())
        session.add(file)
        upload.status, upload.file_id, upload.part_ids = "completed", file.id, list(part_ids)
        holdings.drop_parts(session, upload.id)
        return UploadView(upload, file, content.summary.shown)


def cancel(database: Database, owner: str, upload_id: str) -> UploadView:
    """Ends an upload; its parts are forgotten. Once more changes nothing. Raises NotFound, or Conflict for an upload
    that has ended otherwise."""
    with database.transaction() as session:
        upload = holdings.lock_upload(session, _owned(session, owner, upload_id).id)
        if upload.status != "cancelled":
            _check_pending(upload, database.now())
            upload.status = "cancelled"
            holdings.drop_parts(session, upload.id)
        return UploadView(upload)


def is_expired(upload: Upload, now: int) -> bool:
    return upload.status == "pending" and upload.expires_at <= now


def _owned(session: Session, owner: str, upload_id: str) -> Upload:
    upload = holdings.upload(session, owner, upload_id)
    if upload is None:
        raise NotFound(f"No upload {upload_id!r}.")
    return upload


def _check_pending(upload: Upload, now: int) -> None:
    status = "expired" if is_expired(upload, now) else upload.status
    if status != "pending":
        raise Conflict(f"Upload {upload.id} is {status}: begin another.")


def _completed(session: Session, upload: Upload, part_ids: Sequence[str]) -> UploadView:
    if upload.part_ids != list(part_ids):
        raise Conflict(f"Upload {upload.id} is completed, with other parts: begin another.")
    return UploadView(upload, holdings.file_of(session, upload))


def _check_room(upload: Upload, parts: Sequence[UploadPart], size: int) -> None:
    """Parts that were sent twice have room, but not without end."""
    arrived = sum(part.bytes for part in parts) + size
    if arrived > 2 * upload.bytes or len(parts) >= MAX_PARTS:
        raise Conflict(
            f"Upload {upload.id} is to have {upload.bytes} bytes, and {len(parts) + 1} parts of {arrived} bytes have "
            "arrived: complete it with those that belong to it, or cancel it.",
            "data",
        )


def _chosen(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    by_id = {part.id: part for part in parts}
    for place, part_id in enumerate(part_ids):
        if part_id not in by_id:
            raise InvalidRequest(
                f"part_ids[{place}]: {part_id!r:.70} is no part of this upload; GET /v1/uploads/{upload.id}/parts "
                "lists what has arrived.",
                "part_ids",
                "unknown_part",
            )
    chosen = [by_id[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in chosen)
    if total != upload.bytes:
        message = f"The parts have {total} bytes together, and the upload was begun with bytes={upload.bytes}."
        raise InvalidRequest(message, "part_ids", "wrong_size")
    return chosen


def _limited(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"data: a part has at most {limit} bytes.", "data")
        yield chunk
    if not size:
        raise InvalidRequest("data: the part is empty.", "data")


def _joined(store: Store, parts: Sequence[UploadPart], md5: str | None) -> Iterator[bytes]:
    """The parts' bytes. Raises InvalidRequest at their end where `md5` is another's."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for chunk in store.open(part.sha256):
            if md5 is not None:
                digest.update(chunk)
            yield bytes(chunk)
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise InvalidRequest(f"md5: the parts together have {digest.hexdigest()}, not {md5!r:.40}.", "md5", "wrong_md5")
