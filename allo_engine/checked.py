"""JSON objects that are kept for a resumed run, each with a checksum: what has rotted is not gone on from.

Free of torch.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

_SUM = "crc32"


def checked(value: dict[str, Any]) -> str:
    """A line without its end."""
    return json.dumps({**value, _SUM: _sum(value)})


def whole(text: bytes) -> dict[str, Any] | None:
    """What was written; None where it is anything else."""
    try:
        value = json.loads(text)
        found = value.pop(_SUM)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return value if found == _sum(value) else None


def _sum(value: dict[str, Any]) -> int:
    return crc32(json.dumps(value).encode())
