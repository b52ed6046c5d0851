"""The runner with a real database and a stub trainer, without a broker: claim, run, publish, and every way to fail;
all of it with a trainer that is executed, and with one that is forked from a warm process."""

import os
import signal
import sqlite3
import threading
from contextlib import closing

import psutil
import pytest

from service.db import Database
from service.engines import Patience
from service.jobs import service
from service.jobs.running import attempts
from tests.integration.worker.conftest import COLD, SHORT_LEASE, WARM
from tests.integration.worker.house import OWNER, House, alive
from tests.parts import of_embedded
from tests.rot import flip_a_bit
from tests.waiting import PATIENCE, until
from worker.heart import Heart
from worker.outcome import Abandoned, Cancelled, Failed, Released, Succeeded, broken, interrupted
from worker.runner import Runner
from worker.starting import start_cold


@pytest.fixture(params=["cold", "warm"])
def way(request, warm):
    """How a trainer starts: its program, and who starts it."""
    return (COLD, start_cold) if request.param == "cold" else (WARM, warm.start)


@pytest.fixture
def make_house(make_house, way):
    def make(name="data", **settings):
        house = make_house(name, program=way[0], **settings)
        house.start = way[1]
        return house

    return make


def run(house: House, **kwargs):
    return Runner(house.settings, house.database, house.store, start=house.start, **kwargs)


def in_thread(house: House, **kwargs):
    """A runner on its way with the first ready stage; `join` gives its outcome."""
    outcomes = []
    message = house.dispatch()
    thread = threading.Thread(target=lambda: outcomes.append(run(house, **kwargs).run(*message)))
    thread.start()

    def join():
        thread.join(PATIENCE)
        return outcomes[0]

    return join


def test_a_job_runs_to_its_end(house):
    job = house.submit()
    runner = run(house)
    assert runner.run(*house.dispatch()) == Succeeded({"loss": 0.5})
    assert runner.run(*house.dispatch()) == Succeeded({"loss": 0.5})
    assert house.status(job) == "succeeded"
    assert house.starts() == [("sft", 0), ("evaluate", 0)]
    assert {event.type for event in house.events(job)} == {"message", "metrics"}
    assert [event.seq for event in house.events(job)] == list(range(1, len(house.events(job)) + 1))
    assert house.stage(job).step == 4
    assert house.stage(job).metrics["seconds"] >= 4 * 0.02, "of its steps alone"
    assert house.stage(job).metrics["resumed"] is False
    assert not any((house.settings.data_dir / "runs").iterdir())
    assert not any((house.settings.data_dir / "work").iterdir())


def test_the_first_progress_is_told_at_once(make_house):
    house = make_house(heartbeat_seconds=3600, self_fence_seconds=10800, lease_seconds=10801)
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house)
    until(lambda: house.stage(job).step == 1)
    os.kill(house.trainer()["pid"], signal.SIGKILL)
    join()


def test_a_stage_sees_the_devices_that_its_claim_names_and_no_other(make_house):
    house = make_house(devices="3,GPU-5f3c=24", slots=2)
    house.submit()
    for devices, seen in ((("GPU-5f3c",), "GPU-5f3c"), ((), "")):
        run(house).run(*house.dispatch(*devices))
        assert (house.control / "devices").read_text() == seen
    plain = make_house("plain")
    plain.submit()
    run(plain).run(*plain.dispatch())
    assert (plain.control / "devices").read_text() == os.environ.get("CUDA_VISIBLE_DEVICES", "whatever there is")


def test_fifty_rings_make_one_run(house):
    house.submit()
    message = house.dispatch()
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(run(house).run(*message))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, outcomes)) == [False] * 49 + [True]
    assert house.starts() == [("sft", 0)]


def test_a_made_up_message_is_dropped(house):
    house.submit()
    stage_id, epoch = house.dispatch()
    for message in [("stage-of-nobody", 0), ("'; DROP TABLE jobs", 1), (stage_id, epoch + 1), (stage_id, -1)]:
        assert run(house).run(*message) is None
    assert house.starts() == []


def test_a_worker_whose_engine_was_replaced_beside_it_starts_nothing(house):
    job = house.submit()
    message = house.dispatch()
    assert run(house, replaced=lambda: True).run(*message) is None
    assert (house.stage(job).status, house.starts()) == ("dispatched", [])
    assert run(house).run(*message) is not None


def test_a_crash_is_tried_again_from_its_checkpoint_and_equals_an_uninterrupted_run(make_house):
    straight, crashing = make_house("straight"), make_house("crashing")
    crashing.behave(at={"2": "once:crash"})
    jobs = straight.submit(), crashing.submit()
    run(straight).run(*straight.dispatch())
    outcome = run(crashing).run(*crashing.dispatch())
    assert isinstance(outcome, Failed)
    assert outcome.retry
    assert "the stub crashed" in outcome.message
    assert isinstance(run(crashing).run(*crashing.dispatch()), Succeeded)
    assert crashing.starts() == [("sft", 0), ("sft", 2)]
    assert crashing.artifact(jobs[1]) == straight.artifact(jobs[0])


def test_what_all_attempts_told_of_their_steps_is_a_file_for_tensorboard_among_the_artifacts(house, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    house.behave(at={"2": "once:crash"})
    job = house.submit()
    for _ in range(2):
        run(house).run(*house.dispatch())
    (found,) = (row for row in house.view(job).artifacts if row.output == "tensorboard")
    told = tmp_path / found.path
    told.write_bytes(b"".join(house.store.open(found.sha256)))
    assert told.stat().st_size == found.bytes
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    losses = {scalar.step: scalar.value for scalar in read.Scalars("sft/loss")}
    assert losses.items() >= {1: 1.0, 4: 0.25}.items()
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)  # the evaluation, which trains nothing
    assert [row.output for row in house.view(job).artifacts].count("tensorboard") == 1


def test_an_error_of_the_user_is_not_tried_again(house):
    house.behave(at={"1": "no_pairs"})
    job = house.submit()
    assert run(house).run(*house.dispatch()) == Failed("no_pairs", "Sample more responses.", retry=False)
    assert house.status(job) == "failed"
    assert house.view(job).job.error["code"] == "no_pairs"


def test_a_stage_that_gets_further_each_time_is_never_failed_for_its_deaths(house):
    house.behave(steps=5, at={str(step): "oom" for step in range(1, 5)})
    job = house.submit()
    for attempt in range(1, 5):
        assert run(house).run(*house.dispatch()).code == "killed"
        assert (house.stage(job).status, house.stage(job).attempt) == ("ready", attempt)
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)
    assert [step for _, step in house.starts()] == [0, 1, 2, 3, 4]


def test_deaths_count_anew_behind_each_checkpoint(house):
    job = house.submit()
    for step in ("1", "1", "2", "2", "2"):
        house.behave(before={step: "oom"})
        run(house).run(*house.dispatch())
    assert house.status(job) == "failed"
    assert house.starts() == [("sft", 0)] * 3 + [("sft", 1)] * 2


def test_three_kills_fail_the_job_which_says_what_is_known_of_the_reason(house):
    house.behave(before={"1": "oom"})
    job = house.submit()
    for _ in range(3):
        assert run(house).run(*house.dispatch()).code == "killed"
    assert house.status(job) == "failed"
    assert "was killed (SIGKILL)" in house.view(job).job.error["message"]
    assert "memory" in house.view(job).job.error["message"]
    assert house.starts() == [("sft", 0)] * 3


def test_what_a_library_prints_is_not_taken_for_the_engines_word(house):
    house.behave(at={"1": "babble"})
    house.submit()
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)


def test_a_cancel_reaches_a_silent_trainer_and_leaves_no_process(house):
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house)
    pids = house.trainer()
    house.cancel(job)
    until(lambda: not any(map(alive, pids.values())))
    assert join() == Cancelled()
    assert house.status(job) == "cancelled"


def test_a_drained_stage_is_given_back_uncounted_and_goes_on_from_its_checkpoint(house):
    house.behave(at={"2": "hold"})
    job = house.submit()
    drain = threading.Event()
    join = in_thread(house, draining=drain.is_set)
    pids = house.trainer()
    until(lambda: house.stage(job).step)
    drain.set()
    assert join() == Released()
    assert not any(map(alive, pids.values()))
    assert (house.stage(job).status, house.stage(job).attempt) == ("ready", 0)
    house.behave()
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)
    assert house.starts()[1][1] > 0
    assert house.stage(job).metrics["resumed"] is True


def test_a_paused_job_gives_its_device_back_uncounted_and_goes_on_to_the_same_bits(make_house):
    straight, pausing = make_house("straight"), make_house("pausing")
    pausing.behave(at={"2": "hold"})
    jobs = straight.submit(), pausing.submit()
    run(straight).run(*straight.dispatch())
    join = in_thread(pausing)
    pids = pausing.trainer()
    until(lambda: pausing.stage(jobs[1]).step)
    pausing.pause(jobs[1])
    assert join() == Released()
    assert not any(map(alive, pids.values()))
    stage = pausing.stage(jobs[1])
    assert (stage.status, stage.attempt, stage.worker) == ("waiting", 0, None)
    assert pausing.status(jobs[1]) == "paused"
    pausing.resume(jobs[1])
    pausing.behave()
    assert isinstance(run(pausing).run(*pausing.dispatch()), Succeeded)
    assert pausing.starts()[1][1] > 0
    assert pausing.artifact(jobs[1]) == straight.artifact(jobs[0])


def test_a_paused_job_whose_trainer_does_not_stop_has_its_device_free_after_the_grace_uncounted(make_house):
    house = make_house(**SHORT_LEASE)
    house.behave(at={"2": "hang"})
    job = house.submit()
    join = in_thread(house)
    pids = house.trainer()
    until(lambda: house.stage(job).step == 2)
    house.pause(job)
    assert join() == Released()
    assert not any(map(alive, pids.values()))
    assert (house.stage(job).status, house.stage(job).attempt) == ("waiting", 0)
    house.resume(job)
    house.behave()
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)
    assert house.starts()[1][1] == 2, "it goes on from the checkpoint that there was"


def test_a_cancel_of_a_job_that_is_pausing_ends_it(house):
    house.behave(at={"1": "hold"})
    job = house.submit()
    join = in_thread(house)
    house.trainer()
    house.pause(job)
    house.cancel(job)
    assert join() in (Cancelled(), Released())
    assert house.status(job) == "cancelled"


def test_a_stale_epoch_that_finishes_late_changes_nothing(house):
    house.behave(at={"1": "hold"})
    job = house.submit()
    stale = in_thread(house)
    house.trainer()
    house.expire()
    house.behave()
    (house.control / "pid").unlink()
    fresh = in_thread(house)
    assert stale() == Abandoned()
    assert isinstance(fresh(), Succeeded)
    assert house.stage(job).epoch == 2
    assert [event.message for event in house.events(job)].count("Stage sft: succeeded.") == 1


def test_a_runner_that_reaches_no_database_ends_its_stage(make_house):
    house = make_house(**SHORT_LEASE)
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house)
    pids = house.trainer()
    until(lambda: house.starts())
    with house.without_database():
        until(lambda: not any(map(alive, pids.values())))
    assert join() == Released()
    assert house.stage(job).attempt == 0


def test_a_heart_without_a_database_says_so_after_its_patience(house):
    house.submit()
    claim = attempts.claim(house.database, *house.dispatch(), house.worker)
    with house.without_database(), Heart(house.database, claim, every=0.05, patience=0.3) as heart:
        assert not heart.unreachable
        until(lambda: heart.unreachable)
        assert heart.interrupt is None


@of_embedded(reason="it is SQLite's lock: of PostgreSQL nothing proves that nobody writes")
def test_a_lock_that_another_program_holds_on_the_database_costs_no_lease(house):
    house.submit()
    claim = attempts.claim(house.database, *house.dispatch(), house.worker)
    impatient, renewals = Database(house.settings.database, patience=Patience(lock=0.05)), []
    with closing(sqlite3.connect(house.settings.data_dir / "allo.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Heart(impatient, claim, every=0.05, patience=60) as heart:
            heart.renewed = lambda: renewals.append(1)
            until(lambda: len(renewals) >= 3)
        assert house.stage(claim.job_id).beat == 0
        other.execute("ROLLBACK")
    assert heart.interrupt is None
    impatient.close()


def test_a_line_of_the_engine_that_does_not_fit_is_one_warning_and_costs_nothing(house):
    house.behave(at={"1": "nonsense", "2": "nonsense"})
    job = house.submit()
    assert run(house).run(*house.dispatch()) == Succeeded({"loss": 0.5})
    warnings = [event.message for event in house.events(job) if event.level == "warn"]
    assert len(warnings) == len(set(warnings)) == 3
    assert house.stage(job).attempt == 1


def test_an_input_that_no_longer_verifies_fails_the_job(house):
    job = house.submit()
    for blob in list(house.store.stored()):
        flip_a_bit(house.store, blob.sha256)
    assert run(house).run(*house.dispatch()).code == "corrupt_artifact"
    assert house.status(job) == "failed"


def test_sigkill_of_the_supervisor_counts_as_a_crash_and_leaves_nothing(house):
    house.behave(at={"1": "hang"})
    house.submit()
    join = in_thread(house)
    pids = house.trainer()
    os.kill(psutil.Process(pids["pid"]).ppid(), signal.SIGKILL)
    assert join().code == "killed"
    assert not any(map(alive, pids.values()))


def test_the_engine_sees_no_secret_of_the_service(house, monkeypatch):
    monkeypatch.setenv("ALLO_DATABASE_URL", "canary")
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house)
    environment = psutil.Process(house.trainer()["pid"]).environ()
    house.cancel(job)
    join()
    assert "canary" not in environment.values()
    assert "ALLO_STAGE_ID" in environment


def test_a_trainer_that_stands_still_is_ended_and_its_stack_told(make_house):
    house = make_house(stall_seconds=2)
    house.behave(at={"2": "hang"})
    job = house.submit()
    outcome = run(house).run(*house.dispatch())
    assert (outcome.code, outcome.retry) == ("stalled", True)
    assert "most recent call first" in outcome.message, "where it stood"
    stage = house.stage(job)
    assert (stage.status, stage.attempt, stage.attempts[-1]["reason"]) == ("ready", 1, "stalled")
    assert "no progress" in house.events(job)[-1].message


def test_a_job_whose_time_is_over_has_failed_of_it_and_goes_on_from_its_checkpoint_when_retried(house):
    house.behave(steps=10_000, seconds=0.05)
    job = house.submit(max_seconds=1)
    join = in_thread(house)
    pids = house.trainer()
    outcome = join()
    assert (outcome.code, outcome.retry) == ("deadline", False)
    assert not any(map(alive, pids.values()))
    assert (house.status(job), house.view(job).job.error["code"]) == ("failed", "deadline")
    done = house.stage(job).step
    house.behave(steps=done + 2)
    service.retry(house.database, house.store, OWNER, job, max_seconds=10_000)
    assert isinstance(run(house).run(*house.dispatch()), Succeeded)
    assert house.starts()[1][1] >= done


def test_an_error_of_the_worker_that_nobody_foresaw_ends_the_attempt_with_its_reason(house):
    def fails(launch):
        raise RuntimeError("no process today")

    job = house.submit()
    outcome = Runner(house.settings, house.database, house.store, start=fails).run(*house.dispatch())
    assert (outcome.code, outcome.retry) == ("worker_error", True)
    assert "no process today" in house.stage(job).attempts[-1]["message"]
    assert (house.stage(job).status, house.stage(job).attempt) == ("ready", 1)


def test_a_workspace_that_cannot_be_made_ends_the_attempt_with_its_reason(house):
    job = house.submit()
    (house.settings.data_dir / "runs").write_text("no folder")
    assert run(house).run(*house.dispatch()).code == "worker_io"
    assert house.stage(job).attempts[-1]["reason"] == "worker_io"


def test_a_heart_that_breaks_ends_the_attempt_and_says_so(house):
    class Broken:
        """A database whose every transaction fails in a way that nobody foresaw."""

        def transaction(self):
            raise ValueError("what is this?")

    house.submit()
    claim = attempts.claim(house.database, *house.dispatch(), house.worker)
    with Heart(Broken(), claim, every=0.05, patience=60) as heart:
        until(lambda: heart.interrupt)
    assert interrupted(heart.interrupt) == broken(heart.interrupt.value)
