"""Ids that sort by the time at which they were made: pages follow one column, on every database alike."""

from __future__ import annotations

import re
import secrets
import time

_DIGITS = "0123456789abcdefghijklmnopqrstuv"


def new_id(prefix: str) -> str:
    """`<prefix>-` and 26 characters: 64 bits of nanoseconds, 64 random bits, so that nobody guesses another's."""
    number = time.time_ns() << 64 | secrets.randbits(64)
    return f"{prefix}-" + "".join(_DIGITS[number >> 5 * place & 31] for place in range(25, -1, -1))


def is_id(prefix: str, text: str) -> bool:
    """Whether `new_id(prefix)` may have made it."""
    return re.fullmatch(f"{prefix}-[{_DIGITS}]{{26}}", text) is not None
