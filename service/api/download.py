"""Stored content over HTTP: ranges, so that a download can go on where it stopped, and a checksum to end it."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from service.api.errors import answer
from service.storage.store import Chunk, Store

Opened = Callable[[int, int], Iterator[Chunk]]
"""The bytes of a content from one offset up to, not including, another."""

OCTETS = "application/octet-stream"

_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)


def content(request: Request, store: Store, sha256: str, size: int, filename: str, once: bool = False) -> Response:
    """The blob, or the part of it that `Range` asks for. `once` as for the store.

    The ETag is the content's own hash, so it is strong: the same ETag is the same bytes, for ever.
    """
    return served(request, partial(store.open, sha256, once=once), size, filename, sha256, sha256)


def held(request: Request, data: bytes, filename: str, kind: str = OCTETS) -> Response:
    """What is small and made anew for every request, in the same way."""
    sha256 = hashlib.sha256(data).hexdigest()
    return served(request, lambda start, end: iter((data[start:end],)), len(data), filename, sha256, sha256, kind)


def served(
    request: Request, opened: Opened, size: int, filename: str, tag: str, sha256: str | None, kind: str = OCTETS
) -> Response:
    """A content of `size` bytes that `tag` names: the same tag, the same bytes. `sha256` where it is known; `kind` is
    its media type."""
    etag = f'"{tag}"'
    headers = {
        "content-type": kind,
        "accept-ranges": "bytes",
        "etag": etag,
        "content-disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
    }
    if sha256 is not None:
        headers["repr-digest"] = f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:"
    if not _listed(request, "if-match", etag, default=True):
        return answer(request, 412, "The content is not the one that If-Match names.", code="precondition_failed")
    if _listed(request, "if-none-match", etag, default=False):
        return Response(status_code=304, headers=headers)
    part = _part(request, etag, size)
    if part is None:
        unsatisfied = {"content-range": f"bytes */{size}"}
        return answer(request, 416, f"The content has {size} bytes.", code="range_not_satisfiable", headers=unsatisfied)
    return _stream(request, opened, size, part, headers)


def _stream(request: Request, opened: Opened, size: int, part: tuple[int, int], headers: dict[str, str]) -> Response:
    start, end = part
    status = 200 if part == (0, size) else 206
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    chunks = opened(start, end)
    if request.method == "HEAD":
        return Response(None, status, headers)
    first = next(chunks, b"")  # what is damaged from its start is an error, not a broken connection
    return StreamingResponse(chain([first], chunks), status, headers)


def _listed(request: Request, header: str, etag: str, default: bool) -> bool:
    """Whether the header, a list of ETags or *, names this one; `default` where it is absent."""
    value = request.headers.get(header)
    if value is None:
        return default
    names = {name.strip() for name in value.split(",")}
    weak = f"W/{etag}" in names and header == "if-none-match"
    return "*" in names or etag in names or weak


def _part(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """[start, end) of what is asked for: everything where no range, several, or a stale one is, and always for HEAD
    (RFC 9110, 14.2); None for one that the content does not have."""
    whole = (0, size)
    if request.method != "GET":
        return whole
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return whole
    first, last = map(_number, match.groups())
    if first is None:
        assert last is not None
        start, end = max(size - last, 0), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return whole  # not a range at all, says RFC 9110
    return (start, end) if start < end else None


def _number(digits: str) -> int | None:
    """The first nineteen digits suffice: such a number is larger than whatever is stored."""
    return int(digits.lstrip("0")[:19] or "0") if digits else None
