"""How an attempt ended, as a table: what the engine said, how it exited, what interrupted it → the outcome."""

import pytest

from worker.memory import oom_kills
from worker.outcome import Abandoned, Cancelled, Ending, Failed, Interrupt, NoRoom, Released, Succeeded, judge
from worker.supervisor import EXIT_LEASE_LOST

RESULT = {"type": "result", "metrics": {"loss": 1.0}}
USERS_ERROR = {"type": "error", "code": "no_pairs", "message": "Sample more."}
MEMORY_ERROR = {"type": "error", "code": "out_of_memory", "message": "Lower batch_size."}


def ending(status=0, last=None, stopped=False, log_tail="", starved=None):
    return Ending(status, last, stopped, log_tail, starved)


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        (ending(0, RESULT), Succeeded({"loss": 1.0})),
        (ending(0, RESULT, stopped=True), Succeeded({"loss": 1.0})),
        (ending(75), Released()),
        (ending(143, stopped=True), Released()),
        (ending(137, stopped=True), Released()),
        (ending(1, USERS_ERROR), Failed("no_pairs", "Sample more.", retry=False)),
        (ending(1, MEMORY_ERROR), Failed("out_of_memory", "Lower batch_size.", retry=True)),
        (ending(1, {"type": "error", "code": "disk_full", "message": "No room."}), NoRoom()),
        (ending(EXIT_LEASE_LOST), Released()),
    ],
)
def test_an_ending_has_its_outcome(how, outcome):
    assert judge(how, None) == outcome


@pytest.mark.parametrize(
    ("how", "code", "word"),
    [
        (ending(137), "killed", "most likely because memory ran out"),
        (ending(137, starved=True), "killed", "while memory ran out on its machine"),
        (ending(137, starved=False), "killed", "by somebody"),
        (ending(139), "crashed", "SIGSEGV"),
        (ending(1, log_tail="ValueError: shape"), "crashed", "ValueError: shape"),
        (ending(0), "crashed", "without a result"),
        (ending(1, RESULT), "crashed", "exit status 1"),
        (ending(128 + 99), "crashed", "signal 99"),
    ],
)
def test_a_crash_is_tried_again_and_says_what_is_known(how, code, word):
    outcome = judge(how, None)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.retry) == (code, True)
    assert word in outcome.message


@pytest.mark.parametrize(
    ("interrupt", "outcome"),
    [
        (Interrupt.CANCELLED, Cancelled()),
        (Interrupt.FENCED, Abandoned()),
    ],
)
def test_an_interruption_outweighs_a_result(interrupt, outcome):
    assert judge(ending(0, RESULT), interrupt) == outcome


def test_the_kernels_count_of_kills_for_memory_is_read_where_there_is_one(tmp_path):
    (tmp_path / "vmstat").write_text("pgfault 12\noom_kill 3\n")
    assert oom_kills(tmp_path / "vmstat") == 3
    (tmp_path / "vmstat").write_text("pgfault 12\n")
    assert oom_kills(tmp_path / "vmstat") is None
    assert oom_kills(tmp_path / "absent") is None
