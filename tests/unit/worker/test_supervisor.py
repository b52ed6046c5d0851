"""The supervisor against real processes: whoever is killed, nothing of the command is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import PATIENCE, until
from worker.supervisor import EXIT_LEASE_LOST
from worker.sweep import STAGE_MARK, sweep, sweep_outlived

TREE = textwrap.dedent("""
    import os, pathlib, signal, subprocess, sys, time
    notes = pathlib.Path(sys.argv[1])
    sleeper = [sys.executable, "-c", "import time; time.sleep(300)"]
    child = subprocess.Popen(sleeper)
    if os.fork() == 0:                      # a daemon: new session, its parent gone
        os.setsid()
        daemon = subprocess.Popen(sleeper, start_new_session=True)
        (notes / "daemon").write_text(str(daemon.pid))
        os._exit(0)
    os.wait()
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "polite" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: ((notes / "saved").touch(), sys.exit(75)))
    (notes / "child").write_text(str(child.pid))
    (notes / "command").write_text(str(os.getpid()))
    time.sleep(float(sys.argv[2]))
    sys.exit(3)
""")

RUNNER = textwrap.dedent("""
    import os, subprocess, sys, time
    supervisor = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
    print(supervisor.pid, flush=True)
    while True:
        supervisor.stdin.write(b"beat\\n"); supervisor.stdin.flush(); time.sleep(0.1)
""")


class Family:
    """A supervisor over a command with a child and a daemon, each known by its pid."""

    def __init__(
        self,
        notes: Path,
        seconds: float,
        *manners: str,
        lease: float = PATIENCE,
        grace: float = 0.5,
        by_runner: bool = False,
    ) -> None:
        times = ["--grace", str(grace), "--lease", str(lease)]
        supervisor = [sys.executable, "-m", "worker.supervisor", *times, "--"]
        argv = [*supervisor, sys.executable, "-c", TREE, str(notes), str(seconds), *manners]
        environment = os.environ | {STAGE_MARK: f"stage-{notes.name}"}
        self.stage_id = environment[STAGE_MARK]
        if by_runner:
            argv = [sys.executable, "-c", RUNNER, *argv]
        self.top = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.supervisor = int(self.top.stdout.readline()) if by_runner and self.top.stdout else self.top.pid
        self.pids = {name: _read(notes / name) for name in ("daemon", "child", "command")}

    def say(self, line: bytes) -> None:
        assert self.top.stdin
        self.top.stdin.write(line + b"\n")
        self.top.stdin.flush()

    def left(self) -> set[str]:
        everyone = self.pids | {"supervisor": self.supervisor}
        return {name for name, pid in everyone.items() if _alive(pid)}

    def is_gone(self) -> bool:
        return not self.left()

    def close(self) -> None:
        self.top.kill()
        sweep(self.stage_id)
        self.top.wait()
        for stream in (self.top.stdin, self.top.stdout):
            if stream:
                stream.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    families: list[Family] = []

    def _start(*args: object, **kwargs: object) -> Family:
        families.append(Family(tmp_path, *args, **kwargs))  # type: ignore[arg-type]
        return families[-1]

    yield _start
    for family in families:
        family.close()


def test_the_commands_end_ends_what_it_started_and_gives_its_status(start):
    family = start(0.2)
    assert family.top.wait(PATIENCE) == 3
    assert family.left() == set()


def test_a_signal_that_ended_the_command_shows_in_the_status(start):
    family = start(PATIENCE)
    os.kill(family.pids["command"], signal.SIGKILL)
    assert family.top.wait(PATIENCE) == 128 + signal.SIGKILL
    assert family.left() == set()


def test_stop_gives_the_command_time_to_save(start, tmp_path):
    family = start(PATIENCE, "polite", grace=PATIENCE)
    family.say(b"stop")
    assert family.top.wait(PATIENCE) == 75
    assert (tmp_path / "saved").exists()
    assert family.left() == set()


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(start):
    family = start(PATIENCE, "stubborn")
    started = time.monotonic()
    family.top.send_signal(signal.SIGTERM)
    assert family.top.wait(PATIENCE) == 128 + signal.SIGKILL
    assert time.monotonic() - started >= 0.5
    assert family.left() == set()


def test_kill_waits_for_nobody(start):
    family = start(2 * PATIENCE, "stubborn", grace=2 * PATIENCE)
    family.say(b"kill")
    family.top.wait(PATIENCE)
    assert family.left() == set()


def test_no_beat_for_a_lease_kills_everything(start):
    family = start(PATIENCE, "polite", lease=5)
    for _ in range(11):
        time.sleep(0.5)
        family.say(b"beat")
    assert family.left() == {"supervisor", "command", "child", "daemon"}
    assert family.top.wait(PATIENCE) == EXIT_LEASE_LOST
    assert family.left() == set()


def test_a_frozen_runner_loses_its_tree_with_its_lease(start):
    family = start(PATIENCE, lease=5, by_runner=True)
    family.top.send_signal(signal.SIGSTOP)
    until(lambda: family.left() <= {"supervisor"})  # a zombie until the runner thaws
    family.top.send_signal(signal.SIGCONT)


def test_sigkill_of_the_runner_leaves_nothing(start):
    family = start(PATIENCE, "polite", by_runner=True)
    family.top.kill()
    until(family.is_gone)


def test_sigkill_of_the_supervisor_ends_the_command_and_a_sweep_the_rest(start):
    family = start(PATIENCE)
    os.kill(family.supervisor, signal.SIGKILL)
    until(lambda: not _alive(family.pids["command"]))
    assert family.left() == {"child", "daemon"}
    assert sweep_outlived() >= 2
    until(family.is_gone)


def test_a_sweep_ends_an_earlier_attempt_of_its_stage_and_no_other(start):
    family = start(PATIENCE, by_runner=True)
    sweep("stage-of-another-job")
    assert len(family.left()) == 4
    sweep(family.stage_id)
    until(family.is_gone)


def _read(path: Path) -> int:
    return int(until(lambda: path.exists() and path.read_text()))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
