"""Shares of a file's lines by their content: a line keeps its side whatever else the file holds, in whatever order.

No seed has a part in it: two stages, or two jobs, that name the same share mean the same lines. So what one learns from
can be what the other leaves out. Lines that differ in case or space alone are on one side.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from allo_engine.data.records import as_problem

_PLACES = 10**9


def within(text: str, share: float) -> bool:
    """Whether a content belongs to the share, in [0, 1]: of a smaller share's contents, to any larger one, too."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % _PLACES < round(share * _PLACES)


def subject_of(line: Mapping[str, Any]) -> str:
    """The content that a line of problems or chats goes by: the problem's text, or the whole chat."""
    if line.get("messages") is not None:
        return json.dumps(line["messages"], sort_keys=True)
    return as_problem(line).problem
