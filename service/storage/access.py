"""How an S3-compatible server is reached, and how much of it is kept at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class S3:
    """`cache` is the folder that keeps what was used last, up to `cache_bytes`. No `endpoint` is AWS; without keys, the
    machine's own role is taken, as AWS has it. `seconds` is the longest that one request may take."""

    cache: Path
    cache_bytes: int = 2**30
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    seconds: float = 30
