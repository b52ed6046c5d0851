"""What the fuzzer's requests have that no schema can say: each has an Idempotency-Key of its own, as one that came with
another request before is refused."""

from __future__ import annotations

import uuid
from typing import Any

import schemathesis

NAME, ROOM = "Idempotency-Key", 160


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    key = (case.headers or {}).get(NAME)
    if isinstance(key, str) and 0 < len(key) < ROOM:  # what is too long, or empty, stays so
        case.headers[NAME] = f"{key}{uuid.uuid4().hex}"
