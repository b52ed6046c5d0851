"""A model in the forms that other programs read.

What is a matter of copying is made while it is sent: safetensors in another dtype, the sparse delta. What is computed,
GGUF and PEFT's adapters, is made once: until it is there the answer is 202, and asking again is how one waits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api import render
from service.api.archive import Archive, Part, held_part
from service.api.context import Context, Parts, Reader
from service.api.download import content, served
from service.exporter import ensure
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.registry import exports, models
from service.jobs.registry.exports import FAILED, READY
from service.jobs.tables import ApiKey, Export
from service.storage.store import Store

router = APIRouter(prefix="/models")

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

FORMS = ("safetensors", "delta", "gguf", "peft")

AGAIN = {"retry-after": "2"}


@router.head("/{name:path}/export/safetensors", include_in_schema=False)
@router.get("/{name:path}/export/safetensors")
def read_safetensors(parts: Parts, key: Reader, name: str, request: Request, dtype: Dtype | None = None) -> Response:
    """The whole model as a tar that plain transformers loads once it is unpacked; with `dtype` its weights in that.
    Takes Range."""
    model = models.read_model(parts.database, key.owner, name)
    return _archive(request, [recast(parts.store, file, dtype) for file in model.files], f"{name}.tar")


@router.head("/{name:path}/export/delta", include_in_schema=False)
@router.get("/{name:path}/export/delta")
def read_delta(parts: Parts, key: Reader, name: str, request: Request) -> Response:
    """What training changed, as delta.safetensors: `allo merge` merges it into its base, and describes the format.
    Takes Range."""
    row = exports.delta_of(parts.database, key.owner, name)
    return content(request, parts.store, row.sha256, row.bytes, row.path.rsplit("/", 1)[-1])


@router.get("/{name:path}/export/gguf", responses={202: {"description": "It is being made: ask again."}})
def read_gguf(
    parts: Parts,
    key: Reader,
    name: str,
    request: Request,
    type: Literal["f16", "q8_0"] = "f16",
    file: Literal["model.gguf", "Modelfile"] = "model.gguf",
) -> Response:
    """The model as a GGUF file, for llama.cpp and Ollama, or the Modelfile beside it. Takes Range."""
    row = _asked(parts, key, name, "gguf", {"type": type})
    if row.status != READY:
        return _not_yet(row)
    return _file(parts.store, row, file, request)


@router.get("/{name:path}/export/peft", responses={202: {"description": "It is being made: ask again."}})
def read_peft(
    parts: Parts,
    key: Reader,
    name: str,
    request: Request,
    rank: Annotated[int, Query(ge=1, le=1024)] = 16,
    file: Literal["adapter_config.json", "adapter_model.safetensors"] | None = None,
) -> Response:
    """What alignment changed, approximated by a low-rank adapter in PEFT's format: a tar of its files, or one of them.
    Takes Range."""
    row = _asked(parts, key, name, "peft", {"rank": rank})
    if row.status != READY:
        return _not_yet(row)
    if file is not None:
        return _file(parts.store, row, file, request)
    return _archive(request, [recast(parts.store, found, None) for found in row.files], f"{name}.tar")


def recast(store: Store, file: Mapping[str, Any], dtype: Dtype | None) -> Part:
    """A model's file, its weights in another dtype where one is named."""
    path, sha256 = file["path"], file["sha256"]
    if dtype is not None and path == "config.json":
        return held_part(path, _with_dtype(b"".join(store.open(sha256)), dtype))
    if dtype is None or not path.endswith(".safetensors"):
        return Part(path, file["bytes"], partial(store.open, sha256), sha256)
    made = store.recast(sha256, DTYPES[dtype])
    return Part(path, made.size, made.open, f"{sha256}.{dtype}")


def _with_dtype(config: bytes, dtype: Dtype) -> bytes:
    """A config.json that says what its weights are stored in."""
    said = {name: value for name, value in json.loads(config).items() if name != "torch_dtype"}
    return json.dumps(said | {"dtype": dtype}, indent=2).encode()


def _asked(parts: Context, key: ApiKey, name: str, format: str, options: Mapping[str, Any]) -> Export:
    row = exports.ask(parts.database, key.owner, name, format, options)
    if row.status == FAILED:
        error = row.error or {}
        raise InvalidRequest(error.get("message", "It failed."), "format", error.get("code"))
    if row.status != READY:
        ensure(parts.settings)
    return row


def _not_yet(row: Export) -> Response:
    return JSONResponse(render.export(row), 202, headers=AGAIN)


def _file(store: Store, row: Export, name: str, request: Request) -> Response:
    for file in row.files:
        if file["path"] == name:
            return content(request, store, file["sha256"], file["bytes"], name)
    raise NotFound(f"This export has no file {name!r}.", "file")


def _archive(request: Request, parts: list[Part], filename: str) -> Response:
    archive = Archive(parts)
    return served(request, archive.open, archive.size, filename.replace("/", "-"), archive.tag, None)
