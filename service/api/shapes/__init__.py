"""What every route answers: the response models of the documentation, against which tests hold answers. A later version
may add fields to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.api.shapes import chat, common, comparing, data, estimates, jobs, models, operations, sweeps

ANSWERS: Mapping[str, Any] = {
    "files.create": data.File,
    "files.index": list[data.File],
    "files.read": data.File,
    "files.delete": common.Deleted,
    "files.read_content": bytes,
    "files.read_report": bytes,
    "insight.read": data.Insight,
    "uploads.create": data.Upload,
    "uploads.read": data.Upload,
    "uploads.read_parts": list[data.UploadPart],
    "uploads.add_part": data.UploadPart,
    "uploads.complete": data.Upload,
    "uploads.cancel": data.Upload,
    "jobs.create": jobs.Job | estimates.Estimate,  # the estimate of a dry run
    "estimate.read": estimates.Estimate,
    "jobs.index": list[jobs.Job],
    "jobs.compare": comparing.Comparison,
    "jobs.read": jobs.Job,
    "jobs.delete": common.Deleted,
    "jobs.cancel": jobs.Job,
    "jobs.prioritise": jobs.Job,
    "jobs.pause": jobs.Job,
    "jobs.resume": jobs.Job,
    "jobs.retry": jobs.Job,
    "jobs.checkpoints": list[jobs.Checkpoint],
    "jobs.artifacts": list[jobs.Artifact],
    "sweeps.create": sweeps.Sweep,
    "sweeps.estimate": estimates.SweepEstimate,
    "sweeps.index": list[sweeps.Sweep],
    "sweeps.read": sweeps.Sweep,
    "sweeps.cancel": sweeps.Sweep,
    "events.index": list[jobs.Event],
    "events.metrics": list[jobs.Point],
    "artifacts.read_content": bytes,
    "exports.read_safetensors": bytes,
    "exports.read_delta": bytes,
    "exports.read_gguf": bytes,
    "exports.read_peft": bytes,
    "models.index": list[models.Model],
    "models.read": models.Model,
    "models.delete": common.Deleted,
    "models.files": list[models.ModelFile],
    "models.read_file": bytes,
    "chat.create": chat.ChatCompletion,
    "chat.complete": chat.TextCompletion,
    "webhooks.create": operations.Webhook,
    "webhooks.index": list[operations.Webhook],
    "webhooks.read": operations.Webhook,
    "webhooks.change": operations.Webhook,
    "webhooks.delete": common.Deleted,
    "webhooks.rotate_secret": operations.Webhook,
    "webhooks.deliveries": list[operations.Delivery],
    "webhooks.test": operations.WebhookTest,
    "webhooks.event_types": operations.EventTypes,
    "workers.index": list[operations.Worker],
    "keys.create": operations.Key,
    "keys.index": list[operations.Key],
    "keys.read": operations.Key,
    "keys.revoke": common.Deleted,
    "keys.rotate": operations.Key,
    "keys.entries": list[operations.AuditEntry],
    "hub.read": models.HubModel,
    "hub.read_revision": models.HubModel,
    "hub.tree": "array of HubEntry",
    "hub.tree_of_folder": "array of HubEntry",
    "hub.paths_info": "array of HubEntry",
    "hub.refs": models.HubRefs,
    "hub.resolve": bytes,
    "metrics.metrics": str,
}
"""What a route answers, by its operation's id: one object, a list of them, or bytes."""

_TEXT = {"schema": {"type": "string"}}
OTHER_KINDS: Mapping[str, Mapping[str, Any]] = {
    "events.index": {"text/event-stream": _TEXT},
    "chat.create": {"text/event-stream": _TEXT},
    "chat.complete": {"text/event-stream": _TEXT},
    "events.metrics": {
        "text/csv": _TEXT,
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""What else a route answers with, where its client asks for it."""


def all_shapes() -> Iterator[tuple[str, Any]]:
    """Each by its name."""
    for module in (chat, common, comparing, data, estimates, jobs, models, operations, sweeps):
        for name, shape in vars(module).items():
            if isinstance(shape, type) and shape.__module__ == module.__name__:
                yield name, shape
