"""Workers, webhooks, keys and the audit log."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class Device(TypedDict):
    name: str
    kind: str
    memory_bytes: int | None


class UnderWay(TypedDict):
    """A stage that was given to a worker."""

    id: str
    job_id: str
    name: str
    status: str
    devices: list[str] | None


class Worker(TypedDict):
    """A worker that lives, and what it has. Once it is `calibrated`, it is known how fast it is."""

    id: str
    object: Literal["worker"]
    host: str
    started_at: int
    beat_at: int
    code_version: str
    slots: int
    devices: list[Device]
    cores: int
    memory_bytes: int
    precisions: list[str]
    backends: dict[str, str]
    calibrated: bool
    stages: list[UnderWay]


class Webhook(TypedDict):
    """Where ends of jobs are told; the signing secret is shown where it is made."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    signing_secret: NotRequired[str]


class Delivery(TypedDict):
    """What became of one event at one endpoint."""

    id: str
    object: Literal["webhook_delivery"]
    created_at: int
    webhook_endpoint_id: str
    fine_tuning_job_id: str | None
    event_type: str
    status: Literal["delivered", "pending", "failed"]
    attempts: int
    delivered_at: int | None
    next_attempt_at: int | None
    status_code: int | None
    error: str | None


class WebhookTest(TypedDict):
    """How a test event was taken."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    success: bool


class EventTypes(TypedDict):
    object: Literal["list"]
    data: list[str]


class Key(TypedDict):
    """An API key; its secret is shown where it is made."""

    id: str
    object: Literal["api_key"]
    owner: str
    scopes: list[str]
    begins_with: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    status: str
    secret: NotRequired[str]


class AuditEntry(TypedDict):
    """Who did what."""

    id: str
    object: Literal["audit_entry"]
    created_at: int
    owner: str
    verb: str
    status: int
