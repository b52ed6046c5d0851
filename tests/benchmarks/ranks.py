"""Training as two processes of one thread each, against one: pace, and the bytes that cross the wire a step.

python -m tests.benchmarks.ranks improve|warmup RANK RANKS MEETING is one process of a measurement.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from allo_engine.launching import Place, joined
from allo_engine.model.sequences import batches
from allo_engine.ranks import here
from allo_engine.report import Report
from tests.benchmarks import material
from tests.benchmarks.case import Case, Figures, torch_version
from tests.benchmarks.pairs import MASK, ours_improve, ours_warmup

PAIRS, PROBLEMS, BATCH = 5, 8, 16
"""Two batches of four problems each."""

TRAINING: dict[str, Callable[[int, int], float]] = {"improve": ours_improve, "warmup": ours_warmup}
PACE, BYTES = "tokens/s", "bytes a step"

_BYTES_SENT = 200
"""Where struct tcp_info of linux/tcp.h holds tcpi_bytes_sent, 8 bytes."""


def ranked(stage: str, size: int) -> Figures:
    """What the first of so many processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        material.model()  # converted once, not by each
        command = [sys.executable, "-m", "tests.benchmarks.ranks", stage]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(size), f"{folder}/meeting"], stdout=subprocess.PIPE, text=True, env=one_thread
            )
            for rank in range(size)
        ]
        outputs = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    figures: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return figures


def measured(stage: str, rank: int, size: int, meeting: Path) -> Figures:
    """Scored tokens a second of all ranks, the reference's pass counted; and what this rank sent, by step."""
    with joined(Place(rank, size, meeting), Report(io.StringIO())) if size > 1 else nullcontext():
        pace = TRAINING[stage](PAIRS, PROBLEMS)
        steps = len(list(batches(material.pair_groups(PROBLEMS, PAIRS), BATCH, 0, 0)))
        figures = {PACE: pace, BYTES: sent_bytes() / steps}
        here().barrier()  # a connection is gone when its other end is
        return figures


def sent_bytes() -> int:
    """What this process has sent over the TCP connections that it has open."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as one:
            if one.type == socket.SOCK_STREAM and one.family in (socket.AF_INET, socket.AF_INET6):
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += int.from_bytes(info[_BYTES_SENT : _BYTES_SENT + 8], "little")
    return total


ALONE = {stage: partial(ranked, stage, 1) for stage in TRAINING}
TWO = {stage: partial(ranked, stage, 2) for stage in TRAINING}

CASES = (
    *(
        Case(
            f"{stage}, tokens/s, 2 processes of a thread each",
            TWO[stage],
            ALONE[stage],
            torch_version("1 process of a thread"),
            goal=1.8,
            higher_is_better=True,
            limit="the cores' shared memory and caches; rows of unlike lengths; the exchange, behind the backward pass",
            figure=PACE,
        )
        for stage in TRAINING
    ),
    Case(
        f"bytes that a process sends a step, {MASK:.0%} mask",
        TWO["improve"],
        TWO["warmup"],
        lambda: "all weights",
        goal=MASK + 0.01,
        higher_is_better=False,
        limit="the mask's share: float32 gradients of the masked entries, and what ranks tell one another",
        figure=BYTES,
    ),
)


if __name__ == "__main__":
    stage, rank, size, meeting = sys.argv[1:]
    print(json.dumps(measured(stage, int(rank), int(size), Path(meeting))), flush=True)
