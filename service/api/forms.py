"""A multipart form read as it comes (RFC 7578): a few short fields, and one content that is never held whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.jobs.errors import InvalidRequest

if TYPE_CHECKING:  # the library has it for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

LONGEST_BOUNDARY = 70
"""As RFC 2046 (5.1.1) has it."""

FIELD_BYTES = 1024
"""No field beside the content is longer than this, its name and headers included."""


class Form:
    """The fields `names` and the content `content`, in any order; anything else is refused by name.

    Fields are known as far as the body was read: after `begin`, those that stand before the content, and once
    `content` has ended, all.
    """

    def __init__(self, content_type: str, body: Iterator[bytes], content: str, names: Sequence[str]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._body, self._content, self._names = body, content, (content, *names)
        boundary = _boundary(content_type)
        self._parser = MultipartParser(boundary, _callbacks(self), max_header_size=FIELD_BYTES)
        self._tail, self._longest = b"", len(boundary) + len(b"\r\n----\r\n")
        self._pieces: deque[bytes] = deque()
        self._header = self._value = b""
        self._disposition = b""
        self._name: str | None = None
        self._collected = b""
        self._begun = self._ended = False

    def begin(self) -> None:
        """Reads up to the content. Raises InvalidRequest where there is none, or something else is wrong."""
        while not self._begun:
            self._feed()

    def content(self) -> Iterator[bytes]:
        """The content in pieces, as they come; then the rest of the form is read, too."""
        self.begin()
        while self._pieces or not self._ended:
            if self._pieces:
                yield self._pieces.popleft()
            else:
                self._feed()

    def _feed(self) -> None:
        data = next(self._body, None)
        if data is None:
            self._end_of_body()
        elif self._name == self._content and b"\r" not in self._tail and b"\r" not in data:
            self._pieces.append(data)  # nor a part of a boundary: it need not be searched for one
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"The body is not a multipart form: {error}.", code="invalid_form") from None
        self._tail = (self._tail + data[-self._longest :])[-self._longest :]

    def _end_of_body(self) -> None:
        if not self._ended:
            raise InvalidRequest("The form ends before its last boundary: it did not arrive whole.", code="cut_form")
        if not self._begun:
            raise InvalidRequest(f"{self._content}: is required.", self._content)

    # --- what the parser says

    def part_begins(self) -> None:
        self._disposition, self._name, self._collected = b"", None, b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _text(options.get(b"name", b""))
        if name not in self._names:
            known = ", ".join(self._names)
            raise InvalidRequest(f"{name[:60] or 'A part'}: there is no such field; the form takes {known}.", name[:60])
        if name in self.fields or (name == self._content and self._begun):
            raise InvalidRequest(f"{name}: is given twice.", name)
        self._name = name
        if name == self._content:
            self._begun = True
            self.filename = _text(options[b"filename"]) if b"filename" in options else None

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._content:
            self._pieces.append(data[start:end])
        elif len(self._collected) + end - start > FIELD_BYTES:
            raise InvalidRequest(f"{self._name}: is longer than {FIELD_BYTES} bytes.", self._name)
        else:
            self._collected += data[start:end]

    def part_ends(self) -> None:
        assert self._name is not None
        if self._name != self._content:
            self.fields[self._name] = _text(self._collected)
        self._name = None

    def ends(self) -> None:
        self._ended = True


def _callbacks(form: Form) -> MultipartCallbacks:
    return {
        "on_part_begin": form.part_begins,
        "on_header_field": form.header_name,
        "on_header_value": form.header_value,
        "on_header_end": form.header_ends,
        "on_headers_finished": form.headers_end,
        "on_part_data": form.part_data,
        "on_part_end": form.part_ends,
        "on_end": form.ends,
    }


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        message = f"The Content-Type names no boundary, of {LONGEST_BOUNDARY} bytes at most."
        raise InvalidRequest(message, "Content-Type", "invalid_form")
    return boundary


def _text(value: bytes) -> str:
    """UTF-8, as clients write it; bytes that are none are replaced."""
    return value.decode("utf-8", "replace")
