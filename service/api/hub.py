"""The read side of the Hugging Face Hub, as `huggingface_hub`, transformers and vLLM use it.

They do with HF_ENDPOINT set to this service and a key of it as HF_TOKEN. What else they probe for is answered with 404,
which they take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response

from service.api.context import Parts, Reader
from service.api.download import content, held
from service.jobs.registry import hub
from service.jobs.registry.hub import CARD, Revision

router = APIRouter(tags=["hub"])


@dataclass(frozen=True)
class Asked:
    """What the client may ask along. But for `blobs`, it changes nothing here: a repository is small and flat."""

    blobs: bool = False
    expand: Annotated[list[str] | None, Query()] = None
    securityStatus: bool = False  # noqa: N815 - the client's own name
    recursive: bool = False
    limit: int | None = None
    cursor: str | None = None
    include_prs: bool = False
    download: bool = False


Along = Annotated[Asked, Depends()]


@router.get("/api/models/{namespace}/{name}")
def read(parts: Parts, key: Reader, namespace: str, name: str, asked: Along) -> dict[str, Any]:
    """A job's repository, as its aligned model is."""
    return _info(hub.revision(parts.database, key.owner, namespace, name), asked.blobs)


@router.get("/api/models/{namespace}/{name}/revision/{revision:path}")
def read_revision(parts: Parts, key: Reader, namespace: str, name: str, revision: str, asked: Along) -> dict[str, Any]:
    """One revision: `main`, `sft`, `warmup`, `forgotten`, or a commit."""
    return _info(hub.revision(parts.database, key.owner, namespace, name, revision), asked.blobs)


@router.get("/api/models/{namespace}/{name}/tree/{revision}", dependencies=[Depends(Asked)])
@router.get("/api/models/{namespace}/{name}/tree/{revision}/{folder:path}", dependencies=[Depends(Asked)])
def tree(parts: Parts, key: Reader, namespace: str, name: str, revision: str, folder: str = "") -> list[dict[str, Any]]:
    """A revision's files; there are no folders."""
    state = hub.revision(parts.database, key.owner, namespace, name, revision)
    if folder:
        raise hub.Absent(f"Revision {revision} has no folder {folder!r}.", code="EntryNotFound")
    return [_entry(file) for file in state.every_file]


@router.post("/api/models/{namespace}/{name}/paths-info/{revision:path}")
def paths_info(
    parts: Parts,
    key: Reader,
    namespace: str,
    name: str,
    revision: str,
    request: Request,
    paths: Annotated[Sequence[str], Form()] = (),
) -> list[dict[str, Any]]:
    """Those of the named files that the revision has."""
    request.state.audited = True  # it changes nothing
    state = hub.revision(parts.database, key.owner, namespace, name, revision)
    return [_entry(file) for file in state.every_file if file["path"] in paths]


@router.get("/api/models/{namespace}/{name}/refs", dependencies=[Depends(Asked)])
def refs(parts: Parts, key: Reader, namespace: str, name: str) -> dict[str, Any]:
    """Every revision that there is, as a branch."""
    found = hub.revisions(parts.database, key.owner, namespace, name)
    branches = [
        {"name": state.name, "ref": f"refs/heads/{state.name}", "targetCommit": state.commit} for state in found
    ]
    return {"branches": branches, "converts": [], "tags": []}


@router.head(
    "/{namespace}/{name}/resolve/{revision}/{path:path}", include_in_schema=False, dependencies=[Depends(Asked)]
)
@router.get("/{namespace}/{name}/resolve/{revision}/{path:path}", dependencies=[Depends(Asked)])
def resolve(
    parts: Parts, key: Reader, namespace: str, name: str, revision: str, path: str, request: Request
) -> Response:
    """One file of a revision. Takes Range and If-Range; the ETag is its sha256."""
    state = hub.revision(parts.database, key.owner, namespace, name, revision)
    file = state.file(path)
    if path == CARD:
        answer = held(request, state.card, CARD)
    else:
        answer = content(request, parts.store, file["sha256"], file["bytes"], path.rsplit("/", 1)[-1])
    answer.headers["x-repo-commit"] = state.commit
    answer.headers["x-linked-etag"], answer.headers["x-linked-size"] = f'"{file["sha256"]}"', str(file["bytes"])
    return answer


def _info(state: Revision, blobs: bool) -> dict[str, Any]:
    made = datetime.fromtimestamp(state.created_at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        "_id": state.commit[:24],
        "id": state.repository,
        "modelId": state.repository,
        "author": hub.NAMESPACE,
        "sha": state.commit,
        "private": True,
        "gated": False,
        "disabled": False,
        "createdAt": made,
        "lastModified": made,
        "downloads": 0,
        "likes": 0,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["transformers", "safetensors", "text-generation", "allo"],
        "siblings": [_sibling(file, blobs) for file in state.every_file],
    }


def _sibling(file: Mapping[str, Any], blobs: bool) -> dict[str, Any]:
    entry = _entry(file)
    sizes = {"size": file["bytes"], "blobId": entry["oid"], **({"lfs": _lfs(file)} if "lfs" in entry else {})}
    return {"rfilename": file["path"], **(sizes if blobs else {})}


def _entry(file: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"type": "file", "path": file["path"], "size": file["bytes"], "oid": file["sha256"][:40]}
    weights = file["path"].endswith(".safetensors")
    return entry | ({"lfs": {"oid": file["sha256"], **_size(file)}} if weights else {})


def _lfs(file: Mapping[str, Any]) -> dict[str, Any]:
    return {"sha256": file["sha256"], **_size(file)}


def _size(file: Mapping[str, Any]) -> dict[str, Any]:
    """Of a large file; the pointer is what git would keep in its stead."""
    return {"size": file["bytes"], "pointerSize": 134}
