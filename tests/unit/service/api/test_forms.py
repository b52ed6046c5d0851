"""A form comes in any pieces and any order, and holds nothing that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.api.forms import FIELD_BYTES, Form
from service.jobs.errors import InvalidRequest

TYPE = "Multipart/Form-Data; boundary=edge"


def field(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


PURPOSE, END = field("purpose", b"fine-tune"), b"--edge--\r\n"


def read(body: Iterator[bytes]) -> tuple[bytes, Form]:
    form = Form(TYPE, body, "file", ("purpose", "seconds"))
    form.begin()
    return b"".join(form.content()), form


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return iter([body[start:end] for start, end in pairwise(edges)])


@given(
    st.lists(st.sampled_from([b"\r\n--edg", b"\r\n--", b"\r", b"\n", b"--edge", b"x" * 50, bytes(range(256))])),
    st.lists(st.integers(0, 2000)),
    st.booleans(),
)
def test_the_content_is_the_same_however_it_is_cut(parts: list[bytes], places: list[int], before: bool) -> None:
    content = b"".join(parts)
    assume(b"\r\n--edge" not in b"\r\n" + content)  # it would be the boundary itself
    file = field("file", content, "träin.jsonl")
    body = (PURPOSE + file if before else file + PURPOSE) + END
    found, form = read(cut(body, places))
    assert (found, form.fields, form.filename) == (content, {"purpose": "fine-tune"}, "träin.jsonl")


def test_fields_before_the_content_are_known_before_it_comes() -> None:
    def body() -> Iterator[bytes]:
        yield PURPOSE
        yield field("file", b"")[:-2]
        pytest.fail("nobody asked for more")

    form = Form(TYPE, body(), "file", ("purpose",))
    form.begin()
    assert (form.fields, form.filename) == ({"purpose": "fine-tune"}, None)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (PURPOSE + END, "file", "is required"),
        (END, "file", "is required"),
        (b"", None, "did not arrive whole"),
        (PURPOSE + field("file", b"x"), None, "did not arrive whole"),
        ((PURPOSE + field("file", b"x"))[:-9], None, "did not arrive whole"),
        (b"what is this", None, "not a multipart form"),
        (PURPOSE * 2 + END, "purpose", "given twice"),
        (field("file", b"x") * 2 + END, "file", "given twice"),
        (field("size", b"1") + END, "size", "no such field; the form takes file, purpose, seconds"),
        (field("x" * 500, b"1") + END, "x" * 60, "no such field"),
        (b"--edge\r\n\r\n1\r\n" + END, "", "no such field"),
        (field("purpose", b"x" * (FIELD_BYTES + 1)) + END, "purpose", "longer than 1024 bytes"),
        (field("purpose" + "e" * FIELD_BYTES, b"x") + END, None, "Maximum header size exceeded"),
        (b"--edge\r\n" + b"A: b\r\n" * 9, None, "Maximum header count exceeded"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_what_is_wrong_is_named(body: bytes, param: str | None, message: str, piece: int) -> None:
    pieces = (body[start : start + piece] for start in range(0, len(body), piece))
    with pytest.raises(InvalidRequest, match=message) as refused:
        read(pieces)
    assert refused.value.param == param


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="names no boundary"):
        Form("multipart/form-data", iter(()), "file", ())


def test_a_boundary_is_no_longer_than_it_may_be() -> None:
    Form(f"multipart/form-data; boundary={'x' * 70}", iter(()), "file", ())
    with pytest.raises(InvalidRequest, match="70 bytes at most"):
        Form(f"multipart/form-data; boundary={'x' * 5000}", iter(()), "file", ())
