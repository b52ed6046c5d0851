"""What training files come in: JSON lines or a JSON array, each as it is or compressed with gzip or zstd, and Parquet.

A container is told by its first bytes, never by its name, and read in one pass in bounded memory. Whatever it is, rows
come out as (number, JSON), counted from 1 as lines, elements or rows.
"""

from __future__ import annotations

import codecs
import json
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from time import thread_time
from typing import Protocol

from service.datasets import parquet
from service.datasets.parsing import RIGHT, BadLine, TooMuch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Rows = Generator[tuple[int, bytes], None, None]

HEAD = 2**16
"""Bytes that are looked at to tell a container."""

PIECE, PIECE_IN = 2**18, 2**14
"""Bytes that are decompressed at a time, at most, and the compressed bytes that they are made of."""

MOST_FILES, SMALLEST_FILE = 1000, 256
"""Compressed files behind each other: so many, and another for every so many bytes. Each costs some microseconds."""

SECONDS, SECONDS_A_BYTE = 2.0, 2 / 2**20
"""Of a processor, for a compressed file: so many, and more for every byte of it. Lines that say something take a tenth
of that; a few of them a million times over, in some kilobytes, would take minutes."""

WINDOW_LOG = 25
"""The largest window of zstd that is decompressed, 32 MB: memory that a file asks for. `zstd -19` asks for 8 MB."""


@dataclass(frozen=True)
class Limits:
    """The longest line; the most that a compressed file or Parquet may expand to; the folder, on the disk of the files,
    for what must be written before it can be read; and what a compressed file may take of a processor, however few its
    bytes."""

    line_bytes: int
    data_bytes: int
    scratch: Path | None = None
    seconds: float = SECONDS


def opened(chunks: Iterable[bytes], limits: Limits) -> tuple[str, Rows]:
    """The container's name, as "jsonl", "json.gz" or "parquet", and its rows. Raises BadLine, as reading rows may."""
    head, chunks = _peeked(chunks)
    suffix = ""
    for magic, name, begun in _COMPRESSIONS:
        if head.startswith(magic):
            suffix = f".{name}"
            head, chunks = _peeked(_bounded(_decompressed(chunks, begun, limits.seconds), limits.data_bytes))
            break
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise BadLine(f"begins a file of {name}", "JSON lines, a JSON array, either with gzip or zstd, or Parquet")
    if head.startswith(parquet.MAGIC):
        if suffix:
            raise BadLine(
                "begins a Parquet file that was compressed", "the Parquet file itself: it is compressed within"
            )
        return "parquet", parquet.rows(chunks, limits.data_bytes, limits.line_bytes, limits.scratch)
    chunks = _without_mark(chunks)
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return f"json{suffix}", _elements(chunks, limits.line_bytes)
    return f"jsonl{suffix}", _lines(chunks, limits.line_bytes)


def is_simple(begun: Iterable[bytes]) -> bool:
    """Whether what begins like this is neither compressed nor Parquet: no larger, when it is read, than it is."""
    head, _ = _peeked(begun)
    return not head.startswith((parquet.MAGIC, *(magic for magic, _, _ in _COMPRESSIONS)))


def _peeked(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and all of them: enough to see what they begin with, blank lines aside."""
    chunks = iter(chunks)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head.strip()) >= 8 or len(head) >= HEAD:
            break
    return head[:HEAD], chain([head], chunks)


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    return chain([next(chunks).removeprefix(codecs.BOM_UTF8)], chunks)


def _lines(chunks: Iterable[bytes], longest: int) -> Rows:
    """Lines that are not blank, each with its newline. One that is too long comes cut, and longer than allowed, blank
    or not: nobody has seen the rest of it."""
    number, rest, most = 0, bytearray(), longest + len(b"\r\n")
    for chunk in chain(chunks, (b"\n",)):
        for line in BytesIO(chunk):  # finds newlines five times as fast as bytes.split
            ends = line.endswith(b"\n")
            if rest or not ends:
                rest += line[: max(most + 1 - len(rest), 0)]
                if not ends:
                    continue
                line = bytes(rest)
                rest.clear()
            number += 1
            if len(line) > most or not line.isspace():
                yield number, line


# --- an array


def _elements(chunks: Iterable[bytes], longest: int) -> Rows:
    """The elements of a JSON array, cut out of it. What they hold is for others to judge."""
    text = _Text(chunks, longest)
    number = 0
    text.skip("[")
    while not text.skip("]"):
        if number and not text.skip(","):
            raise BadLine("is not behind a comma", "a JSON array: [{…}, {…}]")
        number += 1
        yield number, text.element().encode()
    text.end()


class _Text:
    """A window on the array's text, from what is read next. It holds an element, and a piece more."""

    def __init__(self, chunks: Iterable[bytes], longest: int) -> None:
        self._chunks, self._longest = iter(chunks), longest
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._ended = "", 0, False

    def skip(self, sign: str) -> bool:
        """Passes over `sign`, and whether it came next, blanks aside."""
        self._blank()
        found = self._text.startswith(sign, self._place)
        self._place += found
        return found

    def element(self) -> str:
        """The next value's text. It is whole only where something follows it: 12 may go on as 123."""
        self._blank()
        while True:
            end, error = self._scanned()
            if error is None and (end < len(self._text) or self._ended):
                break
            left = len(self._text) - self._place
            if left > self._longest:
                wrong = f"is longer than {self._longest} characters, or not JSON: {error or 'it goes on'}"
                raise BadLine(wrong, "a JSON array of smaller objects, or a larger ALLO_MAX_LINE_BYTES")
            if not self._more(left) and error is not None:
                raise BadLine(f"is not JSON: {error}", RIGHT)
        found, self._place = self._text[self._place : end], end
        return found

    def end(self) -> None:
        """Raises BadLine where something stands behind the array."""
        self._blank()
        if self._place < len(self._text):
            raise BadLine("stands behind the end of the array", "one JSON array, or one JSON object a line")

    def _scanned(self) -> tuple[int, ValueError | None]:
        try:
            return _SCAN(self._text, self._place)[1], None
        except RecursionError:
            raise BadLine("is nested too deeply", RIGHT) from None
        except ValueError as error:
            return self._place, error

    def _blank(self) -> None:
        """Passes over blanks."""
        while True:
            match = _BLANK(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text) or not self._more(0):
                return

    def _more(self, at_least: int) -> bool:
        """Reads on, by as much as is there already, so that what is scanned again is not scanned often."""
        found, size = [self._text[self._place :]], 0
        while size <= at_least and not self._ended:
            chunk = next(
                self._chunks, None
            )  # an empty one is no end: what is decompressed may have nothing to give yet
            self._ended = chunk is None
            try:
                found.append(self._decoder.decode(chunk or b"", self._ended))
            except UnicodeDecodeError:
                raise BadLine("is not UTF-8", "UTF-8") from None
            size += len(found[-1])
        self._text, self._place = "".join(found), 0
        return size > 0


_SCAN = json.JSONDecoder().raw_decode
_BLANK = json.decoder.WHITESPACE.match  # type: ignore[attr-defined]


# --- compression


class _Stream(Protocol):
    """A compressed file that is read bit by bit: as zstd's decompressor, which zlib's is made to resemble."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def _zstd() -> _Stream:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


def _decompressed(chunks: Iterable[bytes], begun: Callable[[], _Stream], seconds: float) -> Iterator[bytes]:
    """Of one compressed file, or several behind each other as `cat` makes them; some tools fill up with zeros."""
    stream, files, consumed = begun(), 1, 0
    until = thread_time() + seconds
    for piece in _pieces(chunks):
        consumed += len(piece)
        while piece or not (stream.eof or stream.needs_input):
            if stream.eof:
                if not (piece := piece.lstrip(b"\0")):
                    break
                stream, files = begun(), files + 1
                if files > MOST_FILES + consumed // SMALLEST_FILE:
                    raise BadLine("is in one of too many small files, compressed one by one", "one compressed file")
            try:
                data = stream.decompress(piece, PIECE)
            except (zlib.error, zstd.ZstdError) as error:
                wrong = f"cannot be decompressed, or not in {2**WINDOW_LOG >> 20} MB of memory: {error}"
                raise BadLine(wrong, "the whole file, compressed again: with zstd -19 at most") from None
            yield data
            if thread_time() > until + consumed * SECONDS_A_BYTE:
                raise BadLine(
                    "is where the check took too long: so few compressed bytes hold so much",
                    "the same without compression",
                )
            piece = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise BadLine("is the last of a compressed file that was cut off", "the whole file")


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """In small pieces: what stands behind a compressed file is copied for the next."""
    for chunk in chunks:
        for place in range(0, len(chunk), PIECE_IN):
            yield chunk[place : place + PIECE_IN]


def _bounded(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise TooMuch(
                f"is where the file passes {most} bytes, decompressed",
                "a smaller file, or a larger ALLO_MAX_FILE_BYTES",
            )
        yield chunk


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[], _Stream]], ...] = (
    (b"\x1f\x8b", "gz", _Gzip),
    (b"\x28\xb5\x2f\xfd", "zst", _zstd),
)

_OTHERS = (
    (b"PK\x03\x04", "zip (or a spreadsheet)"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"7z\xbc\xaf", "7z"),
    (b"ARROW1", "Arrow"),
    (b"SQLite format 3", "SQLite"),
    (b"\x1f\x8b", "gzip within another"),
    (b"\x28\xb5\x2f\xfd", "zstd within another"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""What people send as well."""
