"""The dashboard's own files. They are few and small, so that they are held; a page names each by its content, and a
browser never asks for the same twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response

from service.api.guard import PAGES
from service.jobs.errors import NotFound

router = APIRouter(prefix="/static")

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """A file, its media type, and a word that changes with its content."""

    content: bytes
    media_type: str
    version: str


@cache
def assets() -> Mapping[str, Asset]:
    """Every file by its path in the folder, such as `vendor/htmx.min.js`."""
    paths = [path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES]
    return {path.relative_to(FOLDER).as_posix(): _asset(path) for path in paths}


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:12])


def address(name: str) -> str:
    """Where a page finds the file."""
    return f"{PAGES}/static/{name}?v={assets()[name].version}"


@router.get("/{name:path}")
async def read(name: str) -> Response:
    """One file; for good, because its address changes with its content."""
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"There is no file {name:.60}.")
    kept = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(asset.content, media_type=asset.media_type, headers=kept)
