"""What all nouns share: errors and deletions."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

Json = dict[str, Any]


class ErrorBody(TypedDict):
    """`message` is for people, `code` for programs, `param` the field that it is about. Some errors have more."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """Every error."""

    error: ErrorBody


class Deleted(TypedDict):
    id: str
    object: str
    deleted: Literal[True]
