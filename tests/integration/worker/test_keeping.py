"""Checkpoints that outlive their host: kept in the store while a stage runs, and gone on from elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from allo_engine.resumable import CHECKPOINT
from service.jobs import service
from service.jobs.data.erasing import Eraser, Keeping, held_contents
from service.jobs.running import attempts, keeping, workers
from service.jobs.running.keeping import Kept
from service.jobs.tables import KeptCheckpoint
from service.settings import Settings
from service.storage.merged import MergingStore
from service.storage.store import Blob
from tests.integration.worker.conftest import QUICK
from tests.integration.worker.house import OWNER, House, furnish, give_real
from tests.integration.worker.processes import kill_tree
from tests.rot import flip_a_bit
from tests.waiting import PATIENCE, until
from worker.engine import DEFAULT_COMMAND
from worker.keeping import Keeper
from worker.offer import offer
from worker.outcome import Outcome, Released, Succeeded
from worker.runner import Runner
from worker.starting import Warm
from worker.supervisor import SUPERVISOR_MARK
from worker.sweep import STAGE_MARK, sweep
from worker.workspace import Workspace, open_workspace

KEEPS = {"keep_seconds": 0.001, "self_fence_seconds": PATIENCE, "lease_seconds": 2 * PATIENCE}
KEEPS |= {"grace_seconds": PATIENCE}


def rows(house: House) -> list[KeptCheckpoint]:
    """The newest first."""
    with house.database.snapshot() as session:
        query = select(KeptCheckpoint).order_by(KeptCheckpoint.epoch.desc(), KeptCheckpoint.step.desc())
        return list(session.scalars(query))


def held_by(house: House, row: KeptCheckpoint) -> int:
    """The step of what was copied: that of its row, or a later one where training was quicker than the copy."""
    ((_, sha256, _),) = row.files
    return int(json.loads(b"".join(house.store.open(sha256)))["step"])


def elsewhere(house: House, name: str = "second") -> House:
    """The same service on another host: a worker with a folder of its own."""
    there = house.settings.model_copy(
        update={
            "data_dir": house.settings.data_dir.with_name(name),
            "database_url": house.settings.database,
            "store_url": house.settings.store,
        }
    )
    there.open_data_dir()
    other = replace(house, settings=there)
    workers.beat(house.database, other.worker, name, offer(there))
    return other


def in_thread(house: House, **more: Any) -> Callable[[], Outcome | None]:
    outcomes: list[Outcome | None] = []
    runner, ring = Runner(house.settings, house.database, house.store, **more), house.dispatch()
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(*ring)))
    thread.start()

    def join() -> Outcome | None:
        thread.join(PATIENCE)
        return outcomes[0]

    return join


def run(house: House) -> Outcome | None:
    return Runner(house.settings, house.database, house.store).run(*house.dispatch())


def cut(house: House, kept: int = 2) -> str:
    """A job whose trainer dies once so many checkpoints are kept."""
    house.behave(steps=100_000, seconds=0.01)
    job = house.submit()
    join = in_thread(house)
    pid = house.trainer()["pid"]
    until(lambda: len(rows(house)) >= kept)
    os.kill(pid, signal.SIGKILL)
    join()
    house.behave(steps=max(held_by(house, row) for row in rows(house)) + 3, seconds=0)
    return job


def damage(house: House, row: KeptCheckpoint) -> None:
    for _, sha256, _ in row.files:
        flip_a_bit(house.store, sha256)


def told(house: House, job: str, word: str) -> list[str]:
    return [event.message for event in house.events(job) if word in event.message]


@pytest.fixture
def house(make_house: Any) -> House:
    house: House = make_house(**KEEPS)
    return house


def test_another_host_goes_on_from_the_newest_kept_checkpoint_and_ends_in_the_same_bits(
    house: House, make_house: Any
) -> None:
    job = cut(house)
    newest, held = rows(house)[0].step, held_by(house, rows(house)[0])
    other = elsewhere(house)
    assert isinstance(run(other), Succeeded)
    assert [step for _, step in house.starts()] == [0, held]
    assert 0 < newest <= held, "a copy is as new as it can be"
    assert told(house, job, f"Goes on from the checkpoint behind step {newest}, which was kept in the store.")
    assert not any((other.settings.data_dir / "work").iterdir())
    assert rows(house) == [], "a stage that has ended keeps none"
    straight = make_house("straight")
    straight.behave(steps=held + 3, seconds=0)
    uninterrupted = straight.submit()
    run(straight)
    assert house.artifact(job) == straight.artifact(uninterrupted)


RUN = """
import sys
from service.db import Database
from service.settings import Settings
from service.storage import open_store
from worker.runner import Runner
settings = Settings.from_environment()
Runner(settings, Database(settings.database), open_store(settings.store)).run(sys.argv[1], int(sys.argv[2]))
"""


SFT = {"n_epochs": 60, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_seconds": 0.001}


def submitted(house: House, seed: int) -> str:
    new = service.NewJob("tiny", "file-train", method="supervised", seed=seed, stages={"sft": SFT})
    return service.submit(house.database, house.store, new, service.Sender(OWNER)).job.id


def killed_once_it_has_kept(house: House) -> str:
    """A job of the real engine whose worker was killed, with all its processes, behind a checkpoint that is kept."""
    for seed in range(10):  # it may get to its end before anybody looks
        job = submitted(house, seed)
        command = [sys.executable, "-c", RUN, *map(str, house.dispatch())]
        with subprocess.Popen(command, env=os.environ | house.settings.to_environment()) as worker:
            until(lambda process=worker: rows(house) or process.poll() is not None)
            kill_tree(worker.pid)
        if house.stage(job).status == "running":
            house.expire()
            return job
        if house.status(job) != "succeeded":
            house.cancel(job)
    raise AssertionError("no job was caught running")


def test_the_real_engine_ends_in_the_same_bits_on_the_host_that_goes_on(tmp_path: Path) -> None:
    warm = Warm(DEFAULT_COMMAND)

    def ended(house: House, job: str) -> list[tuple[str, str]]:
        runner = Runner(house.settings, house.database, house.store, start=warm.start)
        assert isinstance(runner.run(*house.dispatch()), Succeeded)
        return [(row.path, row.sha256) for row in house.view(job).artifacts if row.output == "checkpoint"]

    cut, straight = (
        furnish(Settings(data_dir=tmp_path / name, **QUICK | KEEPS), tmp_path) for name in ("cut", "straight")
    )
    for house in (cut, straight):
        give_real(house, house.settings.data_dir / "given")
    job = killed_once_it_has_kept(cut)
    size = min(size for row in rows(cut) for path, _, size in row.files if CHECKPOINT.fullmatch(Path(path).name))
    gone_on = ended(elsewhere(cut), job)
    held = held_contents(cut.database, cut.store, Keeping(0, 86_400, 86_400))
    left = [blob.size for blob in cut.store.stored() if blob.sha256 not in held]
    assert all(other < size for other in left), "no checkpoint of a stage that has succeeded waits for the sweep"
    assert told(cut, job, "which was kept in the store")
    assert told(cut, job, "Resumed behind step")
    assert any(path.endswith(".safetensors") for path, _ in gone_on)
    assert gone_on == ended(straight, submitted(straight, cut.view(job).job.seed))
    warm.close()
    for house in (cut, straight):
        house.database.close()


def test_where_the_newest_is_damaged_the_one_before_is_gone_on_from(house: House) -> None:
    job = cut(house)
    newest, before = rows(house)[:2]
    damage(house, newest)
    assert isinstance(run(elsewhere(house)), Succeeded)
    assert house.starts()[1][1] >= before.step > 0
    assert told(house, job, f"behind step {newest.step} that was kept in the store is damaged")
    assert told(house, job, f"Goes on from the checkpoint behind step {before.step}")


def test_where_both_are_damaged_the_stage_begins_at_its_start_and_says_why(house: House) -> None:
    job = cut(house)
    for row in rows(house):
        damage(house, row)
    assert isinstance(run(elsewhere(house)), Succeeded)
    assert [step for _, step in house.starts()] == [0, 0]
    assert len(told(house, job, "that was kept in the store is damaged")) == 2
    assert told(house, job, "No checkpoint of the store is whole: the stage begins at its start.")


def test_two_are_kept_at_a_time_and_their_contents_are_held(house: House) -> None:
    cut(house, kept=2)
    until(lambda: len(rows(house)) == 2)
    eraser = Eraser(house.database, house.store, Keeping(0, 86_400, 86_400))
    eraser.look()
    eraser.look()
    held = {sha256 for row in rows(house) for _, sha256, _ in row.files}
    assert held
    assert all(map(house.store.exists, held))


def test_a_stage_that_is_given_back_has_its_last_checkpoint_in_the_store(
    make_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runner.LAST_SECONDS", PATIENCE)  # the copy stands behind all else on the machine
    house: House = make_house(**KEEPS | {"keep_seconds": 3600})
    house.behave(steps=100_000, seconds=0.01)
    job, drain = house.submit(), threading.Event()
    join = in_thread(house, draining=drain.is_set)
    until(lambda: (house.stage(job).saved_step or 0) > 3)
    drain.set()
    assert join() == Released()
    house.behave(steps=(house.stage(job).saved_step or 0) + 2, seconds=0)
    assert isinstance(run(elsewhere(house)), Succeeded)
    assert house.starts()[1][1] == house.stage(job).saved_step - 2  # type: ignore[operator]


class Troubled(MergingStore):
    """A house's store, with something in the way to it."""

    def __init__(self, house: House) -> None:
        assert isinstance(house.store, MergingStore)
        super().__init__(house.store._under)


class Held(Troubled):
    """It is in the middle of a copy until it is told to go on."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.copies, self.goes_on = threading.Event(), threading.Event()

    def put(self, path: Path) -> Blob:
        self.copies.set()
        assert self.goes_on.wait(PATIENCE)
        return super().put(path)


def saved(workspace: Workspace, step: int) -> None:
    aside = workspace.work / "checkpoint.new"
    aside.write_text(f'{{"step": {step}}}')
    aside.replace(workspace.work / "checkpoint.json")


@contextmanager
def claimed(house: House, store: Troubled) -> Iterator[tuple[Workspace, Keeper]]:
    """A stage that is ours, and who keeps its checkpoints in a store, the first at once."""
    house.submit()
    claim = attempts.claim(house.database, *house.dispatch(), house.worker)
    assert claim is not None
    with (
        open_workspace(house.settings.data_dir, claim.stage_id, claim.epoch, claim.work) as workspace,
        Keeper(house.database, store, claim, workspace, 3600, lambda _: None) as keeper,
    ):
        yield workspace, keeper


def test_the_last_checkpoint_is_kept_though_an_older_one_is_being_copied(house: House) -> None:
    store = Held(house)
    with claimed(house, store) as (workspace, keeper):
        saved(workspace, 1)
        keeper.saw(1)
        assert store.copies.wait(PATIENCE)
        saved(workspace, 2)
        keeper.saw(2)
        asking = threading.Thread(target=keeper.last, args=(PATIENCE,))
        asking.start()
        until(lambda: keeper.hurries)
        store.goes_on.set()
        asking.join()
        assert [row.step for row in rows(house)] == [2, 1]


class Noting(Troubled):
    """It notes who copies at which priority."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.priorities: dict[int, int] = {}

    def put(self, path: Path) -> Blob:
        thread = threading.get_native_id()
        self.priorities[thread] = os.getpriority(os.PRIO_PROCESS, thread)
        return super().put(path)


def test_who_copies_has_the_priority_of_the_beat_which_else_would_wait_for_it_on_a_busy_machine(house: House) -> None:
    store = Noting(house)
    with claimed(house, store) as (workspace, keeper):
        saved(workspace, 1)
        keeper.saw(1)
        until(lambda: rows(house))
    assert list(store.priorities.values()) == [os.getpriority(os.PRIO_PROCESS, threading.get_native_id())]


class Away(Troubled):
    """It takes nothing until it is told to."""

    back = False

    def put(self, path: Path) -> Blob:
        if not self.back:
            raise ConnectionError("the store is away")
        return super().put(path)


def test_while_the_store_is_away_training_goes_on_and_copying_is_tried_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(house)
    house.behave(steps=100_000, seconds=0.01)
    job = house.submit()
    join = in_thread(replace(house, store=away))
    until(lambda: caplog.text.count("keeping_failed") >= 2 and (house.stage(job).step or 0) > 5)
    assert rows(house) == []
    away.back = True
    until(lambda: rows(house))
    house.cancel(job)
    join()
    assert len(told(house, job, "could not be copied to the store")) == 1
    assert house.stage(job).attempt == 1


def test_a_stage_that_lost_its_claim_names_no_checkpoint(house: House) -> None:
    house.submit()
    claim = attempts.claim(house.database, *house.dispatch(), house.worker)
    assert claim is not None
    checkpoint = Kept(3, (("checkpoint.json", "0" * 64, 1),))
    assert keeping.keep(house.database, claim.stage_id, claim.epoch, claim.work, checkpoint) == set()
    assert keeping.keep(house.database, claim.stage_id, claim.epoch - 1, claim.work, checkpoint) is None
    assert len(rows(house)) == 1


def test_a_stage_whose_hosts_die_is_not_failed_while_what_it_keeps_gets_further(house: House) -> None:
    job = house.submit()
    for life in range(6):  # the first got to step 100, and none that comes behind it lives as long
        claim = attempts.claim(house.database, *house.dispatch(), house.worker)
        assert claim is not None
        assert attempts.heartbeat(house.database, claim.stage_id, claim.epoch, saved=100 - life).alive
        checkpoint = Kept(10 + min(life, 3), (("checkpoint.json", str(life) * 64, 1),))
        assert keeping.keep(house.database, claim.stage_id, claim.epoch, claim.work, checkpoint) is not None
        house.expire()
        assert house.status(job) == ("failed" if life == 5 else "running"), "it got further up to the fourth"


def test_what_a_frozen_runner_holds_is_gone_on_from_all_the_same(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "stage-a", 1, "d" * 64) as first:
        (first.work / "checkpoint.json").write_text("step 7")
        first.reach(7)
        with open_workspace(tmp_path, "stage-a", 2, "d" * 64) as second:
            assert second.work != first.work
            assert ((second.work / "checkpoint.json").read_text(), second.reached) == ("step 7", 7)
            (second.work / "checkpoint.json").write_text("step 9")
            second.reach(9)
            with open_workspace(tmp_path, "stage-a", 3, "d" * 64) as third:
                assert ((third.work / "checkpoint.json").read_text(), third.reached) == ("step 9", 9)
                assert (first.work / "checkpoint.json").read_text() == "step 7"
    with open_workspace(tmp_path, "stage-a", 4, "d" * 64) as fourth:
        assert fourth.reached == 9, "whoever thaws is behind"
        fourth.forget_work()
    assert not any((tmp_path / "work").iterdir())


def test_what_an_earlier_attempt_left_running_is_ended_before_the_next_begins(house: House) -> None:
    stage = house.stage(house.submit())
    command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(3600)"]
    marked = {**os.environ, STAGE_MARK: stage.id}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=marked, start_new_session=True) as left:
        assert left.stdout
        left.stdout.readline()
        try:
            Runner(house.settings, house.database, house.store).run(*house.dispatch())
            assert left.poll() == -signal.SIGKILL
        finally:
            left.kill()


def test_what_runs_in_a_container_of_its_own_is_never_swept(house: House) -> None:
    stage = house.stage(house.submit())
    marks = (f"{STAGE_MARK}={stage.id}", f"{SUPERVISOR_MARK}={2**22}:1")
    command = ["unshare", "--pid", "--fork", "--kill-child", "env", *marks, "sh", "-c", "echo here; exec sleep 3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as apart:
        assert apart.stdout
        if not apart.stdout.readline():
            pytest.skip("no container may be made here")
        (inner,) = psutil.Process(apart.pid).children()
        try:
            sweep(stage.id)
            assert inner.is_running()
            assert inner.status() != psutil.STATUS_ZOMBIE
        finally:
            apart.kill()


def test_a_name_never_leads_out_of_the_work_folder(tmp_path: Path, house: House) -> None:
    blob = house.store.put_stream([b"x"])
    with open_workspace(tmp_path, "stage-a", 1, "d" * 64) as workspace:
        for path in ("../x", "/x", "a/../../x"):
            with pytest.raises(ValueError, match="no path inside"):
                list(workspace.take_up(house.store, Kept(1, ((path, blob.sha256, 1),))))
