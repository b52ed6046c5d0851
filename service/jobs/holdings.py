"""Queries about content: uploads and their parts, and who holds which blob."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.jobs.tables import File, Upload, UploadPart

# --- uploads


def upload(session: Session, owner: str, upload_id: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.id == upload_id, Upload.owner == owner))


def lock_upload(session: Session, upload_id: str) -> Upload:
    """The upload's present row; other verbs on it wait until this transaction ends."""
    query = select(Upload).where(Upload.id == upload_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def parts(session: Session, upload_id: str) -> Sequence[UploadPart]:
    """In the order in which they arrived."""
    return session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.id)).all()


def drop_parts(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))


def file_of(session: Session, upload: Upload) -> File | None:
    """The file that the upload became, if it did, and while it is there."""
    return None if upload.file_id is None else session.get(File, upload.file_id)
