"""Of who may use the service, what they did, and who is told of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class ApiKey(Base):
    """A bearer key: only its sha256 is kept, which suffices because the key itself is 256 random bits."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class SignIn(Base):
    """Somebody's session in the dashboard, by the sha256 of its random token; it ends with its key."""

    __tablename__ = "sign_ins"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class PastCall(Base):
    """A request that changed something, by the key that sent it and by what names a repetition of it, with what it was
    answered; kept until `expires_at`."""

    __tablename__ = "past_calls"

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    token: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class WebhookEndpoint(Base):
    """A URL that is told of an owner's jobs. The secret signs, so it is kept as it is; `old_secret` signs beside it
    until `old_secret_until`."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "owner", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(String(2048))
    event_types: Mapped[list[str]] = mapped_column(JSON)
    secret: Mapped[str] = mapped_column(String(128))
    old_secret: Mapped[str | None] = mapped_column(String(128))
    old_secret_until: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class WebhookDelivery(Base):
    """An event on its way to an endpoint, and the log of it: `due_at` is the next attempt's time, None once there is
    none; `status_code` and `error` are the last attempt's."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "endpoint_id", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    event_type: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    due_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    attempts: Mapped[int]
    delivered_at: Mapped[int | None] = mapped_column(BigInteger)
    status_code: Mapped[int | None]
    error: Mapped[str | None]


class Tracking(Base):
    """What a tracker has been told of a job: its events up to `seq`, of each stage the steps up to those in `steps`,
    and the status `told`. `run` is what the tracker calls the job.

    `due_at` is when it is told more, None once all is told or given up. `attempt` is the fencing token, `failures` how
    many attempts failed since the last success, one that is under way among them, and `error` why the last one did.
    """

    __tablename__ = "trackings"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    tracker: Mapped[str] = mapped_column(String(16))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    seq: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[dict[str, int]] = mapped_column(JSON)
    told: Mapped[str | None] = mapped_column(String(32))
    run: Mapped[str | None] = mapped_column(String(255))
    due_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    attempt: Mapped[int]
    failures: Mapped[int]
    error: Mapped[str | None]


class AuditEntry(Base):
    """Who did what, to what, from where, and how it ended: `verb` is `jobs.cancel`, `status` is HTTP's."""

    __tablename__ = "audit"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)
    key_id: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str | None] = mapped_column(String(255), index=True)
    status: Mapped[int]
    request_id: Mapped[str] = mapped_column(String(64))
