"""Files, what they are to models, and uploads."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class File(TypedDict):
    """An uploaded file; one with status `error` has a report of its bad lines."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    format: str | None
    form: str | None
    container: str | None
    rows: int | None
    duplicates: int | None
    sha256: str


class Spread(TypedDict):
    """Of lengths in tokens."""

    min: int
    median: int
    p95: int
    max: int


class Histogram(TypedDict):
    """`counts[i]` sequences have from i·width to (i + 1)·width − 1 tokens."""

    width: int
    counts: list[int]


class TokenLengths(TypedDict):
    """Of what is trained on: each response with what comes before it is a sequence."""

    lines: int
    lines_measured: int
    sequences: int
    prompt: Spread | None
    response: Spread | None
    total: Spread | None
    histogram: Histogram | None
    model_length: int
    longer_than_model: int


class Segment(TypedDict):
    text: str
    trained: bool


class ShownSequence(TypedDict):
    """`of` says which response it ends in."""

    of: Literal["response", "chosen", "rejected", "prediction", "correction"]
    tokens: int
    trained_tokens: int
    segments: list[Segment]


class ShownLine(TypedDict):
    line: int
    sequences: list[ShownSequence]


class Overlap(TypedDict):
    """Lines of the validation file, and their prompts, that stand in the file too."""

    lines: int
    prompts: int


class Insight(TypedDict):
    """What a file is to a model, once `status` is completed."""

    object: Literal["file.insight"]
    status: Literal["running", "completed"]
    file_id: str
    model: str
    validation_file: str | None
    tokens: NotRequired[TokenLengths]
    preview: NotRequired[list[ShownLine]]
    overlap: NotRequired[Overlap | None]


class Upload(TypedDict):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    mime_type: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class UploadPart(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str
    bytes: int
    sha256: str
