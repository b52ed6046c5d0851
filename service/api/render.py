"""Jobs and what belongs to them, as the client reads them. What OpenAI's shapes lack are extra fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from allo_engine.needs import UNKNOWN, Needs
from service.jobs.estimates import fraction, job_eta, job_fraction, known_seconds, stage_eta
from service.jobs.lifecycle import STAGE_ENDED, JobStatus, Priority, StageStatus
from service.jobs.progression import checkpoint_model
from service.jobs.running.placement import Offer, missing
from service.jobs.running.workers import WorkerView
from service.jobs.series import Point
from service.jobs.service import JobView
from service.jobs.tables import Artifact, Event, Export, Job, Model, Stage, WebhookDelivery, WebhookEndpoint

SHORTHAND = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""What OpenAI's deprecated top-level hyperparameters hold."""


def job(view: JobView, now: int, offers: Sequence[Offer]) -> dict[str, Any]:
    """The job; `offers` is what the workers that live have."""
    row = view.job
    expected = row.estimate or {}
    known = known_seconds(row.estimate, view.earlier_seconds)
    eta = None if row.status is JobStatus.PAUSED else job_eta(view.stages, known, now)
    tokens = [stage.metrics["trained_tokens"] for stage in view.stages if "trained_tokens" in stage.metrics]
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "estimated_finish": None if eta is None else now + eta,
        "model": row.model,
        "fine_tuned_model": row.fine_tuned_model,
        "organization_id": row.owner,
        "status": row.status,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "corrections_file": row.corrections_file,
        "retention_file": row.retention_file,
        "masks": row.masks,
        "result_files": row.result_files,
        "trained_tokens": sum(tokens) if tokens else None,
        "seed": row.seed,
        "hyperparameters": {name: row.method["hyperparameters"].get(name, "auto") for name in SHORTHAND},
        "method": _method(row),
        "integrations": row.integrations,
        "metadata": row.user_metadata,
        "sweep": None if row.sweep_id is None else {"id": row.sweep_id, "point": row.sweep_point},
        "user_provided_suffix": row.suffix,
        "error": row.error,
        "cancel_requested": row.cancel_requested,
        "priority": Priority(row.priority).word,
        "max_seconds": row.max_seconds,
        "ran_seconds": round(sum(stage.ran_seconds for stage in view.stages), 1),
        "eta_seconds": eta,
        "progress": _job_progress(view),
        "stages": [
            {**_stage(stage, now, offers), "estimate": expected.get(stage.name), **_files(view, stage)}
            for stage in view.stages
        ],
    }


def _method(row: Job) -> dict[str, Any]:
    """What the job runs with, every default spelled out."""
    kind = row.method["type"]
    return {"type": kind, kind: {key: row.method[key] for key in ("hyperparameters", "stages")}}


def _job_progress(view: JobView) -> dict[str, Any]:
    ended = sum(stage.status in STAGE_ENDED for stage in view.stages)
    return {"stages_ended": ended, "stages_total": len(view.stages), "fraction": round(job_fraction(view.stages), 4)}


def _stage(row: Stage, now: int, offers: Sequence[Offer]) -> dict[str, Any]:
    needed = None if row.needs is None else Needs.read(row.needs)
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "attempt": row.attempt,
        "progress": {"step": row.step, "total": row.total, "fraction": round(fraction(row), 4)},
        "eta_seconds": stage_eta(row, now),
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "metrics": row.metrics,
        "error": row.error,
        "reused_from": row.reused_from,
        "needs": None if needed is None else needs(needed),
        "worker": row.worker,
        "devices": row.devices,
        "missing": _missing(row, needed or UNKNOWN, offers),
        "let_go": row.let_go,
    }


def _files(view: JobView, row: Stage) -> dict[str, Any]:
    """What a stage wrote, and how its attempts ended, where that was read."""
    if view.artifacts is None:
        return {}
    return {"attempts": row.attempts or [], "artifacts": artifacts(view, row)}


def artifacts(view: JobView, row: Stage) -> list[dict[str, Any]]:
    return [artifact(item, row.name) for item in view.files[row.id]]


def needs(row: Needs) -> dict[str, Any]:
    """What a stage must find on a worker; `devices` null: as many as there are to be had."""
    return {
        "devices": row.devices,
        "device_memory_bytes": row.device_bytes,
        "memory_bytes": row.host_bytes,
        "memory_bytes_without_device": row.cpu_bytes,
        "packages": list(row.packages),
        "precision": row.precision,
    }


def _missing(row: Stage, needed: Needs, offers: Sequence[Offer]) -> str | None:
    """What no worker has that the stage needs, where it has yet to be given to one."""
    if row.status in (*STAGE_ENDED, StageStatus.RUNNING):
        return None
    return missing(row.name, needed, offers) or None


def worker(view: WorkerView) -> dict[str, Any]:
    offer = view.offer
    return {
        "id": view.worker.id,
        "object": "worker",
        "host": view.worker.host,
        "started_at": view.worker.started_at,
        "beat_at": view.worker.beat_at,
        "code_version": offer.code,
        "slots": offer.slots,
        "devices": [{"name": found.name, "kind": found.kind, "memory_bytes": found.bytes} for found in offer.devices],
        "cores": offer.cores,
        "memory_bytes": offer.host_bytes,
        "precisions": list(offer.precisions),
        "backends": dict(offer.packages),
        "calibrated": offer.calibration is not None,
        "stages": [_under_way(row) for row in view.stages],
    }


def _under_way(row: Stage) -> dict[str, Any]:
    return {"id": row.id, "job_id": row.job_id, "name": row.name, "status": row.status, "devices": row.devices}


def artifact(row: Artifact, stage: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "artifact",
        "created_at": row.created_at,
        "stage": stage,
        "output": row.output,
        "path": row.path,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "url": f"/v1/artifacts/{row.id}/content",
    }


def event(row: Event) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": row.created_at,
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.data,
        "seq": row.seq,
    }


def point(row: Point) -> dict[str, Any]:
    return {
        "id": f"{row.stage}-{row.step}",
        "object": "fine_tuning.job.metrics",
        "stage": row.stage,
        "step": row.step,
        "steps": row.steps,
        "created_at": row.created_at,
        "metrics": dict(row.values),
    }


def checkpoints(view: JobView) -> list[dict[str, Any]]:
    """The models that the job's stages left, newest first: each can be downloaded, or started from."""
    made = {row.stage_id for rows in view.files.values() for row in rows if row.output == "checkpoint"}
    done = [row for row in view.stages if row.id in made and row.status is StageStatus.SUCCEEDED]
    usable = [row for row in done if row.name != "reward_model"]  # the rewriter is no answer to a problem
    return [_checkpoint(view.job, row) for row in reversed(usable)]


def _checkpoint(row: Job, stage: Stage) -> dict[str, Any]:
    """`step_number` counts the optimizer's steps; a stage's own progress counts what it works through."""
    steps = stage.metrics.get("steps", stage.step or 0)
    return {
        "id": stage.id.replace("stage-", "ftckpt-", 1),
        "object": "fine_tuning.job.checkpoint",
        "created_at": stage.finished_at,
        "fine_tuning_job_id": row.id,
        "fine_tuned_model_checkpoint": checkpoint_model(row, stage.name),
        "step_number": steps,
        "metrics": {**stage.metrics, "step": steps, "train_loss": stage.metrics.get("loss")},
        "stage": stage.name,
    }


def export(row: Export) -> dict[str, Any]:
    """A model in another form, `figures` what was found when it was read back."""
    return {
        "id": row.id,
        "object": "model.export",
        "model": row.model,
        "format": row.format,
        "options": row.options,
        "status": row.status,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "files": row.files,
        "figures": row.figures,
        "error": row.error,
    }


def model(row: Model, exports: Sequence[Export] = ()) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "model",
        "created": row.created_at,
        "owned_by": row.owner or "system",
        "job_id": row.job_id,
        "bytes": sum(file["bytes"] for file in row.files),
        "verdict": row.verdict,
        "origin": row.origin,
        "exports": [export(made) for made in exports],
    }


def model_file(row: Model, file: dict[str, Any]) -> dict[str, Any]:
    url = f"/v1/models/{quote(row.id, safe='')}/files/{quote(file['path'])}"
    return {"id": file["path"], "object": "model.file", **file, "url": url}


def webhook(row: WebhookEndpoint, with_secret: bool = False) -> dict[str, Any]:
    """An endpoint; its secret only where it was made in this very request."""
    secret = {"signing_secret": row.secret} if with_secret else {}
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": f"{row.secret[:9]}…",
        **secret,
    }


def delivery(row: WebhookDelivery) -> dict[str, Any]:
    status = "delivered" if row.delivered_at else "pending" if row.due_at is not None else "failed"
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "created_at": row.created_at,
        "webhook_endpoint_id": row.endpoint_id,
        "fine_tuning_job_id": row.job_id,
        "event_type": row.event_type,
        "status": status,
        "attempts": row.attempts,
        "delivered_at": row.delivered_at,
        "next_attempt_at": row.due_at,
        "status_code": row.status_code,
        "error": row.error,
    }
