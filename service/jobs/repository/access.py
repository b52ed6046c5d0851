"""Every query about who may ask and who asked: keys, calls that are remembered, and the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from service.jobs.repository import Page, paged
from service.jobs.tables import ApiKey, AuditEntry, PastCall, SignIn

# --- keys


def key_by_hash(session: Session, digest: str) -> ApiKey | None:
    return session.scalar(select(ApiKey).where(ApiKey.hash == digest))


def key(session: Session, key_id: str) -> ApiKey | None:
    return session.get(ApiKey, key_id)


def keys(session: Session) -> Sequence[ApiKey]:
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def keys_page(session: Session, page: Page, owner: str | None) -> tuple[list[ApiKey], bool]:
    query = select(ApiKey) if owner is None else select(ApiKey).where(ApiKey.owner == owner)
    return paged(session, query, ApiKey.id, "key", page)


def lock_keys_beside(session: Session, key_id: str) -> None:
    """Makes the calls of one owner that change something wait for each other, whichever of its keys they come with:
    what an owner has is then counted and changed in one."""
    owner = select(ApiKey.owner).where(ApiKey.id == key_id).scalar_subquery()
    session.execute(select(ApiKey.id).where(ApiKey.owner == owner).order_by(ApiKey.id).with_for_update())


# --- sessions of the dashboard


def key_of_sign_in(session: Session, digest: str, now: int) -> ApiKey | None:
    query = select(ApiKey).join(SignIn, SignIn.key_id == ApiKey.id)
    return session.scalar(query.where(SignIn.hash == digest, SignIn.expires_at > now))


def forget_sign_in(session: Session, digest: str) -> None:
    session.execute(delete(SignIn).where(SignIn.hash == digest))


def forget_sign_ins_of(session: Session, key_id: str) -> None:
    session.execute(delete(SignIn).where(SignIn.key_id == key_id))


def forget_past_sign_ins(session: Session, now: int) -> None:
    """Leaves those that another transaction is about to forget: nobody waits for that."""
    old = select(SignIn.hash).where(SignIn.expires_at <= now).with_for_update(skip_locked=True)
    session.execute(delete(SignIn).where(SignIn.hash.in_(old)).execution_options(synchronize_session=False))


# --- calls


def past_call(session: Session, key_id: str, token: str) -> PastCall | None:
    return session.get(PastCall, (key_id, token))


def forget_past_calls(session: Session, now: int) -> None:
    """Leaves those that another transaction is about to forget: nobody waits for that."""
    name = tuple_(PastCall.key_id, PastCall.token)
    old = select(PastCall.key_id, PastCall.token).where(PastCall.expires_at < now).with_for_update(skip_locked=True)
    session.execute(delete(PastCall).where(name.in_(old)).execution_options(synchronize_session=False))


# --- audit


def audit_page(session: Session, page: Page, owner: str | None, object_id: str | None) -> tuple[list[AuditEntry], bool]:
    query = select(AuditEntry)
    query = query if owner is None else query.where(AuditEntry.owner == owner)
    query = query if object_id is None else query.where(AuditEntry.object_id == object_id)
    return paged(session, query, AuditEntry.id, "audit", page)


def forget_audit(session: Session, before: int) -> None:
    """Leaves those that another transaction is about to forget: nobody waits for that."""
    old = select(AuditEntry.id).where(AuditEntry.created_at < before).with_for_update(skip_locked=True)
    session.execute(delete(AuditEntry).where(AuditEntry.id.in_(old)).execution_options(synchronize_session=False))
