"""A process that owns a training process and every process that one ever starts.

    python -m worker.supervisor --grace 10 --lease 40 -- COMMAND…

Its standard input is a pipe from the runner: the runner's life, and its lease.

- a line `beat` says that a heartbeat reached the database; none for `--lease` seconds of the boot clock (which counts
  suspended time too) means that another worker may own the stage by now: everything is killed;
- a line `stop`, SIGTERM, or the end of the pipe (the runner is gone, however it went): SIGTERM to the command, which
  may write a checkpoint, and after `--grace` seconds SIGKILL to everything;
- a line `stack`: SIGUSR1 to the command, which writes where it stands to its log;
- a line `kill`: SIGKILL to everything, at once.

"Everything" is a fact, not a hope: as a child subreaper the supervisor is the ancestor of all that the command starts,
daemons included. It ends only when all of that is gone, and then as the command did: with its exit status, or with
128 + n if signal n ended it. Should the supervisor itself be killed, the kernel kills the command; what the command
left is found by its environment (see `worker.sweep`).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from allo_engine.orphans import adopt, die_with

EXIT_LEASE_LOST = 124
"""The supervisor's exit status after it ended everything because no heartbeat had come for too long."""

SUPERVISOR_MARK = "ALLO_SUPERVISOR"
"""In the environment of everything supervised: `pid:start`, which names the supervisor even after its death."""

_POLL_SECONDS = 0.05


def execute(command: list[str], marks: dict[str, str]) -> int:
    """Start a command as a program of its own; its pid. The kernel kills it when this process ends."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=os.environ | marks,
        preexec_fn=partial(die_with, os.getpid()),  # safe: there is no other thread here
    )
    child.returncode = 0  # `reap` waits for it, not this object
    return child.pid


@dataclass
class Supervision:
    """One command under supervision: what ended it, and what was asked of it since."""

    grace: float
    lease: float
    command: int = 0
    status: int | None = None
    renewed: float = field(default_factory=lambda: boot_seconds())
    kill_at: float | None = None
    lease_lost: bool = False
    unread: bytes = b""

    def renew(self) -> None:
        self.renewed = boot_seconds()

    def stop(self) -> None:
        """Ask the command to end by itself; asking twice does not prolong its time."""
        if self.kill_at is None:
            self.kill_at = boot_seconds() + self.grace
            if self.status is None:
                os.kill(self.command, signal.SIGTERM)

    def stack(self) -> None:
        if self.status is None:
            os.kill(self.command, signal.SIGUSR1)

    def kill(self) -> None:
        self.kill_at = boot_seconds()

    def overdue(self) -> bool:
        """Whether everything must die now; notes why."""
        now = boot_seconds()
        self.lease_lost = self.lease_lost or now - self.renewed > self.lease
        return self.lease_lost or (self.kill_at is not None and now >= self.kill_at)

    def exit_status(self) -> int:
        if self.lease_lost:
            return EXIT_LEASE_LOST
        code = os.waitstatus_to_exitcode(self.status or 0)
        return code if code >= 0 else 128 - code


def main(argv: list[str], start: Callable[[list[str], dict[str, str]], int] = execute) -> int:
    """Run one command to the end of all that it started; the exit status is the command's.

    `start` makes the command a child of this process, with these marks, and returns its pid.
    """
    options = _parse(argv)
    adopt()
    supervision = Supervision(options.grace, options.lease)
    supervision.command = start(options.command, {SUPERVISOR_MARK: f"{os.getpid()}:{process_start(os.getpid())}"})
    signal.signal(signal.SIGTERM, lambda *_: supervision.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervise(supervision)
    end_descendants(supervision)
    return supervision.exit_status()


def supervise(supervision: Supervision) -> None:
    """Return when the command has ended, or when it must."""
    ended, orders = os.pidfd_open(supervision.command), sys.stdin.fileno()
    watched = [ended, orders]
    while supervision.status is None and not supervision.overdue():
        readable, _, _ = select.select(watched, [], [], _POLL_SECONDS)
        if orders in readable and not _obey(supervision):
            watched.remove(orders)
            supervision.stop()
        reap(supervision)
    os.close(ended)


def end_descendants(supervision: Supervision) -> None:
    """Kill all that descends from here, again and again, until nothing does: a process may fork while it is killed."""
    while True:
        descendants = psutil.Process().children(recursive=True)
        for process in descendants:
            _kill(process)
        reap(supervision)
        if not descendants:
            return
        time.sleep(_POLL_SECONDS / 5)


def reap(supervision: Supervision) -> None:
    """Take leave of every ended child, ours or adopted; note how the command ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == supervision.command:
            supervision.status = status


def boot_seconds() -> float:
    """Seconds since boot, those asleep too: a suspended machine must not wake up believing in its lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_start(pid: int) -> str | None:
    """When a living process started, in clock ticks since boot: with the pid, a name that is never given twice."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else fields[18]


def _obey(supervision: Supervision) -> bool:
    """Carry out what the runner wrote; False at the end of the pipe."""
    received = os.read(sys.stdin.fileno(), 4096)
    *lines, supervision.unread = (supervision.unread + received).split(b"\n")
    orders = {b"beat": supervision.renew, b"stop": supervision.stop, b"kill": supervision.kill}
    orders[b"stack"] = supervision.stack
    for line in lines:
        orders[line]()
    return bool(received)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.supervisor", description="Own a command and its descendants."
    )
    parser.add_argument("--grace", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--lease", type=float, required=True, help="seconds without a beat before everything is killed")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
