"""Delete means gone, after a grace, and nothing that anybody needs goes with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from allo_engine.checkpoints.recipe import Recipe
from service.db import Base, Database
from service.jobs import service
from service.jobs.data import files, quota, uploads
from service.jobs.data.erasing import Eraser, Keeping, tally
from service.jobs.data.files import FileLimits, NewFile
from service.jobs.data.uploads import NewUpload
from service.jobs.errors import Conflict, NotFound, QuotaExceeded
from service.jobs.registry import exports, models
from service.jobs.tables import Artifact, Export, File, Stage
from service.storage.store import Blob
from tests.clock import Clock
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain, stage_by_name

LIMITS = FileLimits(10_000, 1000)
LINES = b'{"problem": "p", "solution": "s"}\n'


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def eraser(domain: Domain, clock: Clock) -> Eraser:
    return Eraser(domain.database, domain.store, Keeping(grace=100, refused=1000, retriable=10_000), clock)


def after_the_grace(eraser: Eraser, clock: Clock) -> int:
    """How many blobs went once those without a holder were seen twice, a grace apart."""
    assert eraser.look().blobs == 0
    clock.now += 99
    assert eraser.look().blobs == 0
    clock.now += 1
    return eraser.look().blobs


def at(domain: Domain, seconds: float) -> Domain:
    """The same, with a wall clock that stands there."""
    url = domain.database.engine.url.render_as_string(False)
    return Domain(Database(url, lambda: seconds), domain.store, domain.data)


def add_file(domain: Domain, content: bytes, **more: Any) -> File:
    taken = files.take_in(domain.store, iter([content]), LIMITS)
    return files.add_file(domain.database, NewFile(OWNER, "a.jsonl", **more), taken)


def test_a_deleted_file_is_gone_after_the_grace_with_its_report(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    good, bad = add_file(domain, LINES), add_file(domain, LINES + b"nonsense")
    converted = add_file(domain, b"[" + LINES.strip() + b"]")
    contents = [good.sha256, bad.sha256, bad.report_sha256, converted.sha256]
    assert after_the_grace(eraser, clock) == 0
    for file in (good, bad, converted):
        files.delete_file(domain.database, OWNER, file.id)
    assert all(domain.store.exists(sha256) for sha256 in contents if sha256)
    assert after_the_grace(eraser, clock) == len(set(contents) | {converted.data_sha256})
    assert [blob.sha256 for blob in domain.store.stored()] == [domain.data.sha256]


def test_a_content_lives_as_long_as_its_last_holder(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    first, second = add_file(domain, LINES), add_file(domain, LINES)
    files.delete_file(domain.database, OWNER, first.id)
    assert after_the_grace(eraser, clock) == 0
    files.delete_file(domain.database, OWNER, second.id)
    assert after_the_grace(eraser, clock) == 1


def test_a_content_that_comes_again_within_the_grace_stays(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    files.delete_file(domain.database, OWNER, add_file(domain, LINES).id)
    eraser.look()
    clock.now += 99
    blob = domain.store.put_stream([LINES])  # whose row is not committed yet
    clock.now += 50
    assert eraser.look().blobs == 0
    clock.now += 99
    assert eraser.look().blobs == 0
    assert b"".join(domain.store.open(blob.sha256)) == LINES
    clock.now += 1
    assert eraser.look().blobs == 1, "its row never came"


def test_uploads_and_erasers_at_once_never_lose_what_has_a_row(domain: Domain, clock: Clock) -> None:
    """Time stands still between a blob's storing and its row's commit, as it must: the grace is longer than that."""
    eraser = Eraser(domain.database, domain.store, Keeping(2, 1e9, 1e9), clock)
    done, lock = threading.Event(), threading.Lock()

    def upload(number: int) -> None:
        for turn in range(15):
            content = LINES * (1 + (number + turn) % 2)
            with lock:
                file = add_file(domain, content)
                clock.now += 1
            assert b"".join(domain.store.open(file.sha256)) == content
            files.delete_file(domain.database, OWNER, file.id)

    def erase() -> int:
        erased = 0
        while not done.is_set():
            erased += eraser.look().blobs
        return erased

    with ThreadPoolExecutor(3) as pool:
        erasing = pool.submit(erase)
        try:
            for found in [pool.submit(upload, number) for number in range(2)]:
                found.result()
        finally:
            done.set()
        erasing.result()


def test_a_job_keeps_what_it_began_with_until_it_can_need_it_no_more(
    domain: Domain, eraser: Eraser, clock: Clock
) -> None:
    file = add_file(domain, LINES)
    new = SUPERVISED.__class__("tiny", file.id, "file-heldout", method="supervised")
    job_id = domain.submit(new).job.id
    files.delete_file(domain.database, OWNER, file.id)
    assert after_the_grace(eraser, clock) == 0
    domain.fail_thrice()
    assert after_the_grace(eraser, clock) == 0, "it may be retried"
    service.retry(domain.database, domain.store, OWNER, job_id)
    domain.fail_thrice()
    later = at(domain, 2e9 + 20_000)
    late = Eraser(later.database, domain.store, eraser.keeping, clock)
    assert after_the_grace(late, clock) == 1
    later.database.close()
    with pytest.raises(Conflict, match="a file or model that it began with was deleted"):
        service.retry(domain.database, domain.store, OWNER, job_id)


def test_a_succeeded_job_holds_what_it_made_and_not_what_it_read(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    file = add_file(domain, LINES)
    made = domain.made["sft"] = domain.store.put_stream([b"weights"])
    domain.submit(SUPERVISED.__class__("tiny", file.id, "file-heldout", method="supervised"))
    domain.run_all()
    files.delete_file(domain.database, OWNER, file.id)
    assert after_the_grace(eraser, clock) == 1
    assert domain.store.exists(made.sha256)


def test_a_deleted_model_is_gone_with_what_its_stage_left(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    for name in ("warmup", "forget", "improve"):
        domain.made[name] = domain.store.put_stream([name.encode()])
    job_id = domain.submit(ALLO).job.id
    name = f"ft:tiny:owner:{job_id[-8:]}"
    domain.finish(domain.claim())
    domain.run_all()
    assert domain.view(job_id).job.fine_tuned_model == name
    models.delete_model(domain.database, OWNER, name, admin=False)
    for gone in (name, f"{name}:ckpt-improve"):
        with pytest.raises(NotFound):
            models.read_model(domain.database, OWNER, gone)
    assert models.read_model(domain.database, OWNER, f"{name}:ckpt-warmup")
    assert after_the_grace(eraser, clock) == 1
    assert not domain.store.exists(domain.made["improve"].sha256)
    assert domain.store.exists(domain.made["warmup"].sha256)
    with domain.database.snapshot() as session:
        improve = stage_by_name(domain, job_id, "improve")
        assert session.scalars(select(Artifact).where(Artifact.stage_id == improve.id)).all() == []
    again = domain.submit(ALLO).job.id
    assert "improve" in domain.run_all(), "nothing takes over a result that was erased"
    assert domain.statuses(again)["improve"] == "succeeded"


def test_a_model_stays_while_its_job_may_need_it_and_such_a_job_is_not_retried(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    name = f"ft:tiny:owner:{job_id[-8:]}:ckpt-sft"
    with pytest.raises(Conflict, match="cancel it first, or let it end"):
        models.delete_model(domain.database, OWNER, name, admin=False)
    service.cancel(domain.database, OWNER, job_id)
    models.delete_model(domain.database, OWNER, name, admin=False)
    with pytest.raises(Conflict, match="what stage sft made was deleted"):
        service.retry(domain.database, domain.store, OWNER, job_id)


def test_what_a_content_is_made_of_stays_as_long_as_it(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    base = domain.store.put_stream([b"base"])
    made = Blob("ab" * 32, 4)
    domain.store.derive(made, Recipe.of({"base": base.sha256, "delta": None, "dtype": None, "copies": {}}))
    domain.add_file("file-made", sha256=made.sha256)
    assert after_the_grace(eraser, clock) == 0
    files.delete_file(domain.database, OWNER, "file-made")
    assert after_the_grace(eraser, clock) + eraser.look().blobs == 2
    assert not domain.store.exists(made.sha256)
    assert not domain.store.exists(base.sha256)


def test_time_erases_files_refused_ones_and_uploads(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    lasting, passing = add_file(domain, LINES), add_file(domain, LINES * 2, lifetime=3600)
    refused = add_file(domain, b"nonsense")
    begun = uploads.begin(domain.database, NewUpload(OWNER, 10, "a", "b"), LIMITS, 3600)
    part = uploads.take_part(domain.store, iter([b"a part"]), 100)
    uploads.add_part(domain.database, OWNER, begun.id, part)
    later = at(domain, domain.database.now() + 3601)
    late = Eraser(later.database, domain.store, eraser.keeping, clock)
    assert eraser.look().rows == 0
    assert late.look().rows == 3
    assert uploads.read(later.database, OWNER, begun.id).upload.status == "expired"
    assert after_the_grace(late, clock) == 4
    assert domain.store.exists(lasting.sha256)
    for gone in (passing.sha256, refused.sha256, refused.report_sha256, part.sha256):
        assert gone is not None
        assert not domain.store.exists(gone)
    later.database.close()


def test_cancelled_and_completed_uploads_let_their_parts_go(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    cancelled, completed = (
        uploads.begin(domain.database, NewUpload(OWNER, len(LINES), "a", "b"), LIMITS, 3600) for _ in range(2)
    )
    ids = []
    for upload, content in ((cancelled, b"x"), (completed, LINES[:9]), (completed, LINES[9:])):
        blob = uploads.take_part(domain.store, iter([content]), 100)
        ids.append(uploads.add_part(domain.database, OWNER, upload.id, blob).id)
    assert after_the_grace(eraser, clock) == 0
    uploads.cancel(domain.database, OWNER, cancelled.id)
    uploads.complete(domain.database, domain.store, OWNER, completed.id, ids[1:], None, LIMITS)
    assert after_the_grace(eraser, clock) == 3


def test_an_export_holds_what_was_made(domain: Domain, eraser: Eraser, clock: Clock) -> None:
    made = domain.store.put_stream([b"exported"])
    row = Export(id="e", owner=OWNER, model="tiny", format="gguf", options={}, status="running", created_at=0)
    row.inputs, row.files = {}, []
    with domain.database.transaction() as session:
        session.add(row)
    eraser.look()
    exports.finish(domain.database, "e", [{"path": "m.gguf", "bytes": made.size, "sha256": made.sha256}], {})
    clock.now += 100
    assert eraser.look().blobs == 0
    assert quota.room(domain.database, OWNER, 100) == 100 - domain.data.size - made.size
    models.delete_model(domain.database, OWNER, "tiny", admin=True)
    assert after_the_grace(eraser, clock) == 1
    assert not domain.store.exists(made.sha256)


def test_every_column_that_names_contents_is_known_as_their_holder() -> None:
    """Whoever adds one adds it to `repository.holdings.holders`, too: what is not held there is erased."""
    found = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if "sha256" in column.name or column.name in ("files", "sources")
    }
    assert found == {
        "artifacts.sha256",
        "exports.files",
        "files.data_sha256",
        "files.report_sha256",
        "files.sha256",
        "jobs.sources",
        "kept_checkpoints.files",
        "markers.sha256",
        "models.files",
        "upload_parts.sha256",
    }


def test_what_is_held_is_told_by_owner(domain: Domain, eraser: Eraser) -> None:
    add_file(domain, LINES)
    domain.add_file("file-theirs", owner="other")
    domain.store.put_stream([b"nobody's"])
    found = tally(domain.database, domain.store, eraser.keeping)
    size = domain.data.size
    assert found == {"owner": (2, size + len(LINES)), "other": (1, size), "everyone": (1, size), "nobody": (1, 8)}


def test_an_owner_has_no_more_bytes_than_allowed(domain: Domain) -> None:
    """Two files of the fixture are one content of 12 bytes."""
    limit = 12 + 2 * len(LINES)

    def add(content: bytes, owner: str = OWNER) -> File:
        taken = files.take_in(domain.store, iter([content]), LIMITS)
        return files.add_file(domain.database, NewFile(owner, "a.jsonl"), taken, limit)

    assert quota.room(domain.database, OWNER, limit) == 2 * len(LINES)
    one = add(LINES)
    add(LINES)  # the same content takes no more room
    assert quota.room(domain.database, OWNER, limit) == len(LINES)
    begun = uploads.begin(domain.database, NewUpload(OWNER, len(LINES), "a", "b"), LIMITS, 3600, limit)
    assert quota.room(domain.database, OWNER, limit) == 0
    with pytest.raises(QuotaExceeded, match=f"You may have {limit} bytes") as refused:
        add(LINES * 2)
    assert refused.value.details == {"bytes": limit + 2 * len(LINES), "limit": limit}
    with pytest.raises(QuotaExceeded):
        uploads.begin(domain.database, NewUpload(OWNER, 1, "a", "b"), LIMITS, 3600, limit)
    with pytest.raises(QuotaExceeded):
        domain.submit(SUPERVISED, domain.sender(max_owner_bytes=limit))
    add(LINES * 2, "other")
    uploads.cancel(domain.database, OWNER, begun.id)
    domain.submit(SUPERVISED, domain.sender(max_owner_bytes=limit))
    files.delete_file(domain.database, OWNER, one.id)
    domain.made["sft"] = domain.store.put_stream([b"x" * 1000])
    domain.run_all()
    assert quota.room(domain.database, OWNER, limit) == 0, "what jobs made counts, too"


def test_two_at_once_do_not_share_the_same_room(domain: Domain) -> None:
    def add(number: int) -> bool:
        taken = files.take_in(domain.store, iter([LINES + b" " * number]), LIMITS)
        try:
            files.add_file(domain.database, NewFile(OWNER, "a.jsonl"), taken, 12 + len(LINES) + 8)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(1, 9))) == 1


def test_stages_that_never_ran_are_not_taken_for_erased_ones(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    service.cancel(domain.database, OWNER, job_id)
    assert service.retry(domain.database, domain.store, OWNER, job_id).job.status == "queued"
    with domain.database.snapshot() as session:
        assert session.scalars(select(Stage.digest).where(Stage.job_id == job_id)).all().count(None) > 0
