"""Whatever rots in the store is found in time, and is mended by being made or uploaded again."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import select

from service.db import Database
from service.jobs import service
from service.jobs.data import files
from service.jobs.data.files import FileLimits, NewFile
from service.jobs.data.scrubbing import Scrubbed, Scrubber, quarantine
from service.jobs.errors import Conflict
from service.jobs.repository import damaged
from service.jobs.running import losses
from service.jobs.tables import Damage
from service.storage.store import CHUNK, Blob, BlobMissing, Store
from tests.clock import Clock
from tests.integration.service.domain import OWNER, SUPERVISED, Domain, in_order
from tests.parts import GROWN
from tests.rot import flip_a_bit

DAY = 86_400


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def ours(domain: Domain, clock: Clock) -> Domain:
    """The same, with a clock that the test moves."""
    database = Database(domain.database.engine.url.render_as_string(False), clock)
    yield Domain(database, domain.store, domain.data)  # type: ignore[misc]
    database.close()


def scrubber(ours: Domain, clock: Clock, pace: float = 1e9, days: float = 10) -> Scrubber:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    return Scrubber(ours.database, ours.store, days * DAY, pace, sleep)


def add_blobs(store: Store, count: int, size: int) -> list[Blob]:
    return [store.put_stream([os.urandom(size)]) for _ in range(count)]


def noted(ours: Domain) -> list[str]:
    with ours.database.snapshot() as session:
        return list(session.scalars(select(Damage.id)))


@pytest.mark.parametrize("size", [1000, 2 * CHUNK + 5])
def test_a_flipped_bit_is_found_set_aside_and_healed_by_storing_it_again(ours: Domain, clock: Clock, size: int) -> None:
    content = os.urandom(size)
    blob = ours.store.put_stream([content])
    flip_a_bit(ours.store, blob.sha256)
    looks = scrubber(ours, clock)
    assert looks.look().damaged == 1
    assert noted(ours) == [blob.sha256]
    assert not ours.store.exists(blob.sha256)
    with pytest.raises(BlobMissing):
        ours.store.open(blob.sha256)
    assert ours.store.put_stream([content]) == blob
    clock.now += 60
    assert looks.look().healed == 1
    assert noted(ours) == []
    assert b"".join(ours.store.open(blob.sha256)) == content
    assert ours.store.tidy() == (0 if GROWN else 1), "a folder keeps damaged bytes, which serve nobody any more"


def test_an_uploaded_file_that_rotted_is_healed_by_uploading_it_again(ours: Domain, clock: Clock) -> None:
    lines = b'{"problem": "p", "solution": "s"}\n'

    def upload() -> str:
        taken = files.take_in(ours.store, iter([lines]), FileLimits(1000, 1000))
        return files.add_file(ours.database, NewFile(OWNER, "a.jsonl"), taken).sha256

    sha256 = upload()
    flip_a_bit(ours.store, sha256)
    scrubber(ours, clock).look()
    assert not ours.store.exists(sha256)
    assert upload() == sha256
    assert b"".join(ours.store.open(sha256)) == lines


def test_everything_is_read_within_its_days_and_no_faster_than_the_pace(ours: Domain, clock: Clock) -> None:
    count, size = 40, CHUNK
    blobs = add_blobs(ours.store, count, size)
    pace, began = 1000.0 * CHUNK, clock.now
    looks, read = scrubber(ours, clock, pace, days=1), 0
    while _rounds(ours) == 0:
        before = clock.now
        did = looks.look()
        assert clock.now - before >= did.bytes / pace * 0.999
        read += did.bytes
        clock.now += 1200
    assert clock.now - began <= DAY + 1200
    assert read == count * size + ours.data.size
    assert clock.now - began > DAY / 5, "it takes its time"
    assert all(ours.store.exists(blob.sha256) for blob in blobs)


def test_whoever_leads_next_goes_on_where_the_last_one_came_to(ours: Domain, clock: Clock) -> None:
    add_blobs(ours.store, 12, CHUNK)
    total = 12 * CHUNK + ours.data.size
    read = 0
    for _ in range(100):
        if _rounds(ours):
            break
        read += scrubber(ours, clock, days=1).look().bytes  # a new one each time
        clock.now += 3600
    assert read == total, "nothing is read twice in a round"


def test_a_content_that_comes_again_while_it_is_examined_stays(ours: Domain) -> None:
    blob = ours.store.put_stream([b"whole"])
    mark = ours.store.find(blob.sha256).mark
    ours.store.put_stream([b"whole"])
    assert not ours.store.set_aside(blob.sha256, mark)
    assert ours.store.exists(blob.sha256)


def test_what_somebody_took_for_damaged_and_is_not_stays(ours: Domain) -> None:
    blob = ours.store.put_stream([b"whole"])
    assert not quarantine(ours.database, ours.store, blob.sha256)
    assert ours.store.exists(blob.sha256)
    assert not quarantine(ours.database, ours.store, "0" * 64)


def test_what_was_erased_meanwhile_is_no_damage(ours: Domain, clock: Clock) -> None:
    blob = ours.store.put_stream([b"soon gone"])
    ours.store.delete(blob.sha256)
    assert scrubber(ours, clock).look() == Scrubbed(ours.data.size, 0, 0)


def test_a_clock_that_leaps_makes_it_read_no_faster_than_the_pace(ours: Domain, clock: Clock) -> None:
    add_blobs(ours.store, 6, CHUNK)
    looks = scrubber(ours, clock, pace=CHUNK / 100, days=1)
    looks.look()
    clock.now -= 5 * DAY
    before = clock.now
    assert looks.look().bytes <= CHUNK + ours.data.size, "one at a time"
    assert clock.now - before >= 99


def _rounds(ours: Domain) -> int:
    with ours.database.snapshot() as session:
        scrub = damaged.last_scrub(session)
        return 0 if scrub is None else scrub.rounds


def unreadable(domain: Domain, sha256: str) -> None:
    """A worker comes upon a content that rotted, while it reads what its stage needs."""
    claimed = domain.claim()
    quarantine(domain.database, domain.store, sha256)
    assert losses.lose(domain.database, domain.store, claimed.stage_id, claimed.epoch, sha256)


def test_a_finished_stages_result_that_rotted_is_made_again_by_its_own_stage(domain: Domain) -> None:
    """sft is done, and evaluate finds that it cannot read its checkpoint."""
    made = domain.made["sft"] = domain.store.put_stream([b"the weights"])
    job_id = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    flip_a_bit(domain.store, made.sha256)
    unreadable(domain, made.sha256)
    assert domain.statuses(job_id) == {"sft": "ready", "evaluate": "waiting"}
    domain.store.put_stream([b"the weights"])
    assert domain.run_all() == ["sft", "evaluate"]
    assert domain.view(job_id).job.status == "succeeded"
    said = [event.message for event in domain.events(job_id)]
    assert "Stage sft: what it made is damaged; it is made again." in said
    assert in_order(domain.events(job_id))


def test_a_damaged_result_is_not_taken_over_by_another_job(domain: Domain) -> None:
    made = domain.made["sft"] = domain.store.put_stream([b"the weights"])
    domain.submit(SUPERVISED)
    domain.run_all()
    flip_a_bit(domain.store, made.sha256)
    again = domain.submit(SUPERVISED).job.id
    assert domain.statuses(again) == {"sft": "succeeded", "evaluate": "succeeded"}, "nobody has read it"
    quarantine(domain.database, domain.store, made.sha256)
    third = domain.submit(SUPERVISED).job.id
    assert domain.statuses(third) == {"sft": "ready", "evaluate": "waiting"}


def test_a_disk_that_damages_whatever_is_made_fails_the_job_in_the_end(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    for _ in range(3):
        made = domain.made["sft"] = domain.store.put_stream([b"the weights"])
        domain.finish(domain.claim())
        flip_a_bit(domain.store, made.sha256)
        unreadable(domain, made.sha256)
    assert domain.view(job_id).job.status == "failed"
    assert domain.view(job_id).job.error["code"] == "corrupt_artifact"


def test_a_file_that_rotted_fails_the_job_with_what_to_do_and_goes_on_once_it_is_there_again(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    flip_a_bit(domain.store, domain.data.sha256)
    unreadable(domain, domain.data.sha256)
    error = domain.view(job_id).job.error
    assert (error["code"], "Upload the file or add the model again" in error["message"]) == ("corrupt_artifact", True)
    with pytest.raises(Conflict, match="damaged"):
        service.retry(domain.database, domain.store, OWNER, job_id)
    domain.store.put_stream([b"some content"])
    service.retry(domain.database, domain.store, OWNER, job_id)
    assert domain.run_all() == ["sft", "evaluate"]


def test_what_one_workers_store_does_not_have_is_nobodys_damage(domain: Domain) -> None:
    """Another worker may have it: the result stays."""
    made = domain.made["sft"] = domain.store.put_stream([b"the weights"])
    job_id = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    domain.store.delete(made.sha256)
    unreadable(domain, made.sha256)
    assert domain.statuses(job_id) == {"sft": "succeeded", "evaluate": "ready"}


def test_a_stale_attempt_unmakes_nothing(domain: Domain) -> None:
    made = domain.made["sft"] = domain.store.put_stream([b"the weights"])
    job_id = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    claimed = domain.claim()
    flip_a_bit(domain.store, made.sha256)
    quarantine(domain.database, domain.store, made.sha256)
    assert not losses.lose(domain.database, domain.store, claimed.stage_id, claimed.epoch - 1, made.sha256)
    assert domain.statuses(job_id) == {"sft": "succeeded", "evaluate": "running"}
