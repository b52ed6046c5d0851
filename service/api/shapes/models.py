"""Models, file by file, and as the Hub's clients read them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from service.api.shapes.common import Json


class Model(TypedDict):
    """What jobs start from and what they made."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    job_id: str | None
    bytes: int
    origin: Json | None
    verdict: Json | None
    exports: list[Json]


class ModelFile(TypedDict):
    id: str
    object: Literal["model.file"]
    path: str
    bytes: int
    sha256: str
    url: str


class HubModel(TypedDict):
    """A repository's revision, as the Hub's client reads it."""

    id: str
    sha: str
    siblings: list[Json]


class HubEntry(TypedDict):
    type: Literal["file"]
    path: str
    size: int
    oid: str


class HubRefs(TypedDict):
    branches: list[Json]
    tags: list[Json]
