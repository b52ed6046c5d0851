"""Why a request is refused with 422, in words for programs: the error's `code`.

One rule: `invalid_value` is what the document does not allow, so that no request which it allows ever meets it. Every
other code is of what no schema can say, and stands in the document of each operation that answers with it: what lies
behind an id, in a file or at a URL, what the operator allows, what the rest of the request says, and the time. The
fuzzer holds all answers against this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CODES: Mapping[str, str] = {
    "invalid_value": "it is not as this document says",
    "idempotency_key_reused": "another request came with this Idempotency-Key",
    "invalid_form": "the body is no multipart form",
    "cut_form": "the form did not arrive whole",
    "invalid_training_file": "a file's lines cannot be used as asked",
    "invalid_job": "settings do not go together, or not with what the files and models hold",
    "invalid_masks": "the job or file named has no masks to train in",
    "invalid_sweep": "too many points, or two that are the same job",
    "teacher_refused": "the operator does not allow this host",
    "tracker_refused": "the operator does not allow this tracker, or this place of it",
    "tracker_missing": "this tracker's library is not installed",
    "no_estimate": "what the job would compute cannot be counted",
    "no_insight": "the model cannot read the file",
    "unpaired_runs": "there are more runs on one side than on the other",
    "no_delta": "the model has no sparse delta",
    "no_base": "no job made the model",
    "refused": "the model has no place in this form",
    "unknown_part": "the upload has no such part",
    "unknown_stage": "the job has no such stage",
    "wrong_size": "the parts have not the upload's size",
    "wrong_md5": "the parts have another MD5",
    "expired": "the time lies in the past",
    "webhook_url_refused": "nothing may be delivered to this URL",
    "webhook_test_failed": "the receiver did not take the sample",
    "bad_template": "the model's chat template does not take these messages",
    "empty_prompt": "the prompt has no tokens",
}

_JOB = (
    "invalid_job",
    "invalid_training_file",
    "invalid_masks",
    "teacher_refused",
    "tracker_refused",
    "tracker_missing",
)

_OF: Mapping[str, tuple[str, ...]] = {
    "files.create": ("invalid_training_file",),
    "uploads.complete": ("invalid_training_file", "unknown_part", "wrong_size", "wrong_md5"),
    "jobs.retry": ("unknown_stage",),
    "jobs.create": (*_JOB, "no_estimate"),
    "estimate.read": (*_JOB, "no_estimate"),
    "sweeps.create": (*_JOB, "invalid_sweep"),
    "sweeps.estimate": (*_JOB, "invalid_sweep", "no_estimate"),
    "jobs.compare": ("unpaired_runs",),
    "insight.read": ("invalid_training_file", "no_insight"),
    "exports.read_delta": ("no_delta",),
    "exports.read_gguf": ("refused",),
    "exports.read_peft": ("refused", "no_base"),
    "chat.create": ("bad_template", "empty_prompt"),
    "chat.complete": ("empty_prompt",),
    "webhooks.create": ("webhook_url_refused",),
    "webhooks.change": ("webhook_url_refused",),
    "webhooks.test": ("webhook_test_failed",),
    "keys.create": ("expired",),
}
"""By the operation's id, beside those that a kind of request has."""


def codes_of(operation: Mapping[str, Any]) -> list[str]:
    """Those with which an operation of the document answers."""
    kinds = operation.get("requestBody", {}).get("content", {})
    form = ("invalid_form", "cut_form") if "multipart/form-data" in kinds else ()
    repeated = any(one["name"] == "idempotency-key" for one in operation.get("parameters", ()))
    again = ("idempotency_key_reused",) if repeated else ()
    return ["invalid_value", *again, *form, *_OF.get(operation["operationId"], ())]
