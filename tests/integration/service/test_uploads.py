"""Files in parts: what the openai client sends, what it sends twice, and what does not fit together."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from service.db import Database
from service.jobs.access.keys import create_key
from service.jobs.data import files, uploads
from service.jobs.data.files import FileLimits
from service.jobs.data.uploads import NewUpload
from service.jobs.errors import Conflict, InvalidRequest, NotFound, TooLarge
from service.jobs.tables import Upload
from service.storage import open_store
from tests.integration.service.domain import OWNER, Domain
from tests.waiting import PATIENCE

LINES = b"".join(b'{"problem": "p%d", "solution": "s"}\n' % number for number in range(100))
PARTS = [LINES[:1000], LINES[1000:1001], LINES[1001:]]
AGAIN = {"x-stainless-retry-count": "1"}
LIMITS = FileLimits(10_000, 1000)


@pytest.fixture
def client(base_url: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(api_key=secret, base_url=base_url, max_retries=0) as client:
        yield client


def begin(client: OpenAI, size: int = len(LINES), **more: Any) -> str:
    wanted = {"filename": "träin.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune", **more}
    return client.uploads.create(bytes=size, **wanted).id


def test_the_clients_own_chunked_upload_makes_a_file(client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    upload = client.uploads.upload_file_chunked(
        file=tmp_path / "train.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=700,
        md5=hashlib.md5(LINES, usedforsecurity=False).hexdigest(),
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(LINES), "train.jsonl")
    assert upload.file is not None
    assert (upload.file.status, upload.file.bytes, upload.file.purpose) == ("processed", len(LINES), "fine-tune")
    assert client.files.content(upload.file.id).read() == LINES
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload.file.id)
    assert job.training_file == upload.file.id


def test_a_client_that_starts_again_sees_what_has_arrived_and_goes_on(client: OpenAI) -> None:
    upload = begin(client, expires_after={"anchor": "created_at", "seconds": 3600})
    for part in PARTS[:2]:
        client.uploads.parts.create(upload, data=part)
    arrived: Any = client.get(f"/uploads/{upload}/parts", cast_to=object)
    assert [part["bytes"] for part in arrived["data"]] == [1000, 1]
    assert arrived["data"][0]["sha256"] == hashlib.sha256(PARTS[0]).hexdigest()
    assert client.get(f"/uploads/{upload}", cast_to=openai.types.Upload).status == "pending"
    last = client.uploads.parts.create(upload, data=PARTS[2])
    assert (last.object, last.upload_id) == ("upload.part", upload)
    made = client.uploads.complete(upload, part_ids=[*(part["id"] for part in arrived["data"]), last.id])
    assert made.file is not None
    assert made.file.expires_at == made.file.created_at + 3600
    assert client.files.content(made.file.id).read() == LINES
    assert client.get(f"/uploads/{upload}", cast_to=openai.types.Upload).file == made.file


def test_the_order_is_that_of_the_ids_and_a_part_may_come_twice(client: OpenAI) -> None:
    line = b'{"problem": "p", "solution": "s"}\n'
    upload = begin(client, len(line) * 3)
    half, rest = (client.uploads.parts.create(upload, data=part).id for part in (line[:9], line[9:]))
    made = client.uploads.complete(upload, part_ids=[half, rest] * 3)
    assert made.file is not None
    assert client.files.content(made.file.id).read() == line * 3


def test_whatever_is_sent_twice_is_done_once(client: OpenAI) -> None:
    upload = begin(client)
    assert begin(client, extra_headers=AGAIN) == upload
    ids = []
    for data in PARTS:
        part = client.uploads.parts.create(upload, data=data)
        assert client.uploads.parts.create(upload, data=data, extra_headers=AGAIN) == part
        ids.append(part.id)
    twin = client.uploads.parts.create(upload, data=PARTS[0])
    assert twin.id not in ids, "nothing says that this one is a repetition"
    other = begin(client)
    assert other != upload
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: client.uploads.complete(upload, part_ids=ids), range(4)))
    assert {found.file and found.file.id for found in made} == {made[0].file and made[0].file.id}
    assert [file.filename for file in client.files.list()].count("träin.jsonl") == 1
    for headers in ({}, AGAIN, {}):
        assert client.uploads.cancel(other, extra_headers=headers).status == "cancelled"


def test_a_file_sent_twice_is_one_and_its_deletion_too(client: OpenAI) -> None:
    made = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    again = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_headers=AGAIN)
    other = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    assert made == again != other
    for headers in ({}, AGAIN):
        assert client.files.delete(made.id, extra_headers=headers).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete("file-never")


def test_bad_lines_are_told_each_time_and_the_report_is_kept(client: OpenAI) -> None:
    bad = LINES + b"nonsense"
    upload = begin(client, len(bad))
    part = client.uploads.parts.create(upload, data=bad).id
    for _ in range(2):
        with pytest.raises(openai.UnprocessableEntityError, match="line 101: the line is not JSON") as refused:
            client.uploads.complete(upload, part_ids=[part])
    body: Any = refused.value.body
    assert client.files.retrieve(body["file_id"]).status == "error"
    assert client.get(f"/uploads/{upload}", cast_to=openai.types.Upload).status == "completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**70}, "bytes"),
        ({"bytes": "x"}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"filename": "\0"}, "filename"),
        ({"mime_type": "x" * 256}, "mime_type"),
        ({"purpose": "vision"}, "purpose"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"sha256": "x"}, "sha256"),
    ],
)
def test_a_bad_beginning_is_named(client: OpenAI, body: dict[str, Any], param: str) -> None:
    right = {"bytes": 10, "filename": "a", "mime_type": "b", "purpose": "fine-tune"}
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.post("/uploads", body={**right, **body}, cast_to=object)
    assert refused.value.param == param


def test_a_name_never_leads_anywhere_and_a_file_too_large_is_refused_at_once(client: OpenAI) -> None:
    upload = begin(client, 10, filename="../../etc/passwd")
    assert client.get(f"/uploads/{upload}", cast_to=openai.types.Upload).filename == "passwd"
    with pytest.raises(openai.APIStatusError, match="up to 20000 bytes") as refused:
        begin(client, 20_001)
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


def test_a_strangers_upload_is_an_absent_one(client: OpenAI, served: Domain, base_url: str) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload, data=LINES).id
    stranger = create_key(served.database, "stranger", ("admin",)).secret
    headers = {"authorization": f"Bearer {stranger}"}
    with httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=PATIENCE) as theirs:
        for method, path, body in (
            ("GET", "", {}),
            ("GET", "/parts", {}),
            ("POST", "/parts", {"files": {"data": b"x"}}),
            ("POST", "/complete", {"json": {"part_ids": [part]}}),
            ("POST", "/cancel", {}),
        ):
            answers = [theirs.request(method, f"/uploads/{name}{path}", **body) for name in (upload, "upload-none")]
            assert [answer.status_code for answer in answers] == [404, 404], path
            messages = [answer.json()["error"]["message"] for answer in answers]
            assert messages[0].replace(upload, "upload-none") == messages[1]
        own = theirs.post("/uploads", json={"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "fine-tune"})
        stolen = theirs.post(f"/uploads/{own.json()['id']}/complete", json={"part_ids": [part]})
        assert (stolen.status_code, stolen.json()["error"]["param"]) == (422, "part_ids")


# --- on both databases


def begun(domain: Domain, size: int = len(LINES), **more: Any) -> Upload:
    return uploads.begin(domain.database, NewUpload(OWNER, size, "a.jsonl", "text", **more), LIMITS, 3600)


def add(domain: Domain, upload: Upload, data: bytes) -> str:
    blob = uploads.take_part(domain.store, iter([data]), 5000)
    return uploads.add_part(domain.database, OWNER, upload.id, blob).id


def complete(domain: Domain, upload: Upload, *ids: str, md5: str | None = None) -> uploads.UploadView:
    return uploads.complete(domain.database, domain.store, OWNER, upload.id, ids, md5, LIMITS)


def test_parts_that_do_not_make_the_file_are_refused_and_can_be_mended(domain: Domain) -> None:
    upload = begun(domain)
    first, second, third = (add(domain, upload, part) for part in PARTS)
    foreign = add(domain, begun(domain), LINES)
    for ids, message in (
        ([first, third], f"have {len(LINES) - 1} bytes together"),
        ([first, foreign], r"part_ids\[1\]"),
        ([first, "part-none"], r"part_ids\[1\]"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            complete(domain, upload, *ids)
    with pytest.raises(InvalidRequest, match="md5: the parts together have"):
        complete(domain, upload, first, second, third, md5="0" * 32)
    done = complete(
        domain, upload, first, second, third, md5=hashlib.md5(LINES, usedforsecurity=False).hexdigest().upper()
    )
    assert done.file is not None
    assert (done.file.status, done.file.rows) == ("processed", 100)
    with pytest.raises(Conflict, match="with other parts"):
        complete(domain, upload, first, third, second)


def test_an_upload_that_ended_takes_nothing(domain: Domain) -> None:
    cancelled, completed, expired = (begun(domain, 9) for _ in range(3))
    part = add(domain, completed, b'{"a": 1}\n')
    kept = add(domain, expired, b'{"a": 1}\n')
    uploads.cancel(domain.database, OWNER, cancelled.id)
    complete(domain, completed, part)
    later = Domain(Database(domain.database.engine.url.render_as_string(False), lambda: 2e9), domain.store, domain.data)
    for at, upload, state in (
        (domain, cancelled, "cancelled"),
        (domain, completed, "completed"),
        (later, expired, "expired"),
    ):
        with pytest.raises(Conflict, match=state):
            uploads.check_open(at.database, OWNER, upload.id)
        with pytest.raises(Conflict, match=state):
            add(at, upload, b"x")
    with pytest.raises(Conflict, match="expired"):
        complete(later, expired, kept)
    with pytest.raises(Conflict, match="completed"):
        uploads.cancel(domain.database, OWNER, completed.id)
    with pytest.raises(NotFound):
        uploads.check_open(domain.database, OWNER, "upload-none")
    later.database.close()


def test_parts_are_bounded(domain: Domain) -> None:
    upload = begun(domain, 10)
    with pytest.raises(TooLarge, match="at most 5000"):
        add(domain, upload, b"x" * 5001)
    with pytest.raises(InvalidRequest, match="is empty"):
        add(domain, upload, b"")
    add(domain, upload, b"x" * 20)
    with pytest.raises(Conflict, match="21 bytes have arrived"):
        add(domain, upload, b"x")


def test_a_large_file_that_breaks_off_leaves_nothing_and_one_that_is_whole_is_checked_apart(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    content = LINES * (2 * files.HERE // len(LINES))
    limits = FileLimits(2**24, 2**16)

    def broken() -> Iterator[bytes]:
        yield content
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.take_in(store, broken(), limits)
    assert not any(store.scratch.iterdir())
    assert not list(store.stored())
    taken = files.take_in(store, iter([content, b"nonsense"]), limits)
    assert (taken.summary.rows, taken.summary.problem_count) == (len(content.splitlines()), 1)
    assert b"".join(store.open(taken.blob.sha256)) == content + b"nonsense"
    assert taken.report is not None
    assert store.exists(taken.report.sha256)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, len(LINES)), max_size=8), st.sampled_from([LINES, LINES + b"{", b"\n" + LINES, b"x" * 2000])
)
def test_a_file_in_any_chunks_is_the_file_whole(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], content: bytes
) -> None:
    store = open_store((tmp_path_factory.getbasetemp() / "cut").as_uri())
    edges = [0, *sorted(places), len(content)]
    whole = files.take_in(store, iter([content]), LIMITS)
    cut = files.take_in(store, (content[start:end] for start, end in itertools.pairwise(edges)), LIMITS)
    assert whole == cut
    assert b"".join(store.open(whole.blob.sha256)) == content
