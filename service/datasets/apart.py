"""A file checked in a process of its own, while it comes: the check takes a processor, and whoever receives the file
needs the interpreter meanwhile. What strangers wrote has bounds there.

    python -m service.datasets.apart LINE_BYTES DATA_BYTES SCRATCH

reads the file, and prints frames: a sign (report, data, summary), the length in four bytes, the content.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from service.children import alone, last_words
from service.datasets.parsing import BadLine
from service.datasets.validation import Limits, LineProblem, Sink, Summary, validate

PIECE = 2**20
"""Bytes that are handed over at a time."""

MEMORY_BYTES, LINES_HELD = 2**29, 64
"""What the process may hold: so much, and the longest line so many times, for what is made of it."""

NO_MEMORY = 3
"""The exit status of a process that wanted more."""

_HEAD = struct.Struct("<cI")
_REPORT, _DATA, _SUMMARY = b"r", b"d", b"s"


@contextmanager
def checking(report: Sink, data: Sink, limits: Limits) -> Iterator[Check]:
    """The check of a file that is written to it. It ends with its `with`, whatever it has come to.

    `report` and `data` are written in a thread, and belong to it until the summary has come back.
    """
    ours, its = socket.socketpair()  # takes the kernel half the work of a pipe
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
    with TemporaryFile() as errors, ours:
        with its:
            child = _started(limits, its, errors)
        check = Check(child, ours, errors, report, data, limits)
        try:
            yield check
        finally:
            check.end()


class Check:
    """A process that checks a file, and the thread that hears what it says."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        its_input: socket.socket,
        errors: IO[bytes],
        report: Sink,
        data: Sink,
        limits: Limits,
    ) -> None:
        self._child, self._input, self._errors, self._limits = child, its_input, errors, limits
        self._sinks = {_REPORT: report, _DATA: data}
        self._found: Summary | None = None
        self._broken: Exception | None = None
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def write(self, data: bytes) -> None:
        """The file's next bytes."""
        with suppress(ConnectionError):  # it has read enough
            self._input.sendall(data)

    def summary(self) -> Summary:
        """What the file is, now that all of it was written. Raises what the sinks raise."""
        self._input.close()
        self._reading.join()
        if self._broken is not None:
            raise self._broken
        if self._child.wait() == 0 and self._found is not None:
            return self._found
        return self._given_up(self._child.returncode)

    def end(self) -> None:
        """Whatever it was doing."""
        _kill(self._child)
        self._reading.join()
        with self._child:
            pass  # its pipes are closed, and it is waited for

    def _read(self) -> None:
        try:
            for sign, content in _frames(self._child.stdout):
                if sign == _SUMMARY:
                    self._found = _summary(content)
                else:
                    self._sinks[sign].write(content)
        except Exception as error:  # such as a full disk: whoever waits for the summary is told
            self._broken = error
            _kill(self._child)

    def _given_up(self, status: int) -> Summary:
        """A check that ran out of memory, or was killed for it, is the file's fault; any other is ours."""
        if status not in (NO_MEMORY, -signal.SIGKILL):
            self._errors.seek(0)
            raise RuntimeError(f"The check of a file ended with {status}: {last_words(self._errors.read().decode())}")
        wrong = f"cannot be checked: that took more than {_memory(self._limits) >> 20} MB of memory"
        refused = _broken(BadLine(wrong, "smaller lines"))
        return validate(refused, self._sinks[_REPORT], self._sinks[_DATA], self._limits)


def _started(limits: Limits, its_input: socket.socket, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    options = (limits.line_bytes, limits.data_bytes, limits.scratch or "")
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *map(str, options)],
        stdin=its_input.fileno(),
        stdout=subprocess.PIPE,
        stderr=errors,
        env=alone(),
        process_group=0,
    )


def _kill(child: subprocess.Popen[bytes]) -> None:
    """It, and the reader of Parquet that it may have started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _frames(stream: IO[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    assert stream is not None
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        sign, size = _HEAD.unpack(head)
        yield sign, stream.read(size)


def _summary(content: bytes) -> Summary:
    found = json.loads(content)
    shown = tuple(LineProblem(**problem) for problem in found.pop("shown"))
    return Summary(**found | {"lines_without_solution": tuple(found["lines_without_solution"])}, shown=shown)


def _broken(error: BadLine) -> Iterator[bytes]:
    yield b""
    raise error


def _memory(limits: Limits) -> int:
    return MEMORY_BYTES + LINES_HELD * limits.line_bytes


# --- in the process


class _Frames:
    """A sink whose bytes come out as frames of one sign."""

    def __init__(self, sign: bytes) -> None:
        self._sign, self._held, self._size = sign, list[bytes](), 0

    def write(self, data: bytes) -> int:
        self._held.append(data)
        self._size += len(data)
        if self._size >= PIECE:
            self.flush()
        return len(data)

    def flush(self) -> None:
        sys.stdout.buffer.write(_HEAD.pack(self._sign, self._size))
        sys.stdout.buffer.writelines(self._held)
        self._held, self._size = [], 0


def main() -> None:
    line_bytes, data_bytes, scratch = sys.argv[1:]
    limits = Limits(int(line_bytes), int(data_bytes), Path(scratch) if scratch else None)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # stays: a reader of Parquet has its own bound, and takes more
    resource.setrlimit(resource.RLIMIT_DATA, (_memory(limits), most))
    report, data, summary = map(_Frames, (_REPORT, _DATA, _SUMMARY))
    try:
        found = validate(iter(lambda: sys.stdin.buffer.read(PIECE), b""), report, data, limits)
    except MemoryError:
        sys.exit(NO_MEMORY)
    summary.write(json.dumps(asdict(found)).encode())
    for frames in (report, data, summary):
        frames.flush()


if __name__ == "__main__":
    main()
