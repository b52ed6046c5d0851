"""What the fuzzer does with our requests and answers beside its own checks."""

from __future__ import annotations

import re
import uuid
from typing import Any

import schemathesis

NAME, ROOM = "Idempotency-Key", 160

THERE = {"model": "tiny", "training_file": "file-train", "validation_file": "file-heldout"}
"""Of what a body names, what there is (see test_fuzz.py): else nobody would look at what else it holds."""

_NAME = re.compile(r"[^/.~\x00][^\x00]{0,63}")


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    """Each request has an Idempotency-Key of its own: one that came with another request before is refused. What could
    be a name in its body is one that there is; what could not stays as it is."""
    key = (case.headers or {}).get(NAME)
    if isinstance(key, str) and 0 < len(key) < ROOM:  # what is too long, or empty, stays so
        case.headers[NAME] = f"{key}{uuid.uuid4().hex}"
    if isinstance(case.body, dict):
        for name in case.body.keys() & THERE.keys():
            given = case.body[name]
            if isinstance(given, str) and _NAME.fullmatch(given) and "://" not in given:
                case.body[name] = THERE[name]


@schemathesis.check
def refused_by_the_document_alone(context: Any, response: Any, case: Any) -> None:
    """A request that the document allows is never refused as one that it does not (service/api/refusals.py)."""
    made = case.meta
    if made is None or not made.generation.mode.is_positive or response.status_code != 422:
        return
    error = response.json()["error"]
    assert error["code"] != "invalid_value", f"valid, and refused: {error['param']}: {error['message']}"
