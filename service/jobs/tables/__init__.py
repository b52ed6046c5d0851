"""The tables. Timestamps are integer Unix seconds; statuses are those of the lifecycle."""

from service.jobs.tables.access import ApiKey, AuditEntry, PastCall, SignIn, Tracking, WebhookDelivery, WebhookEndpoint
from service.jobs.tables.stored import Compatibility, Damage, Marker, Scrub
from service.jobs.tables.work import (
    Artifact,
    Event,
    Export,
    File,
    Job,
    KeptCheckpoint,
    Lease,
    Model,
    Stage,
    Upload,
    UploadPart,
    Worker,
)

__all__ = [
    "ApiKey",
    "Artifact",
    "AuditEntry",
    "Compatibility",
    "Damage",
    "Event",
    "Export",
    "File",
    "Job",
    "KeptCheckpoint",
    "Lease",
    "Marker",
    "Model",
    "PastCall",
    "Scrub",
    "SignIn",
    "Stage",
    "Tracking",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
