"""The vLLM backend: an engine in a process of its own, which streams responses back and dies with this one.

Its own process, because an engine keeps its memory for as long as its process lives, changes torch for all that runs
beside it, and may be killed at any time. One process serves one model: vLLM can take other weights into a loaded model,
but where embeddings are tied its head goes on with the old ones on a CPU (limitation 2 of its reload module, in 0.32).

What the same seed guarantees: each response has a generator of its own, seeded by (seed, number, sample), so what it is
does not depend on the order of requests, on what is decoded beside it, or on where a run was cut and resumed, as far as
logits do not. In float32 they depend on the batch by rounding alone, which next to never changes a token; in 16 bits
rounding does, unless the worker's environment holds VLLM_BATCH_INVARIANT=1. What was drawn is kept and never drawn
again. Another version of vLLM, another kind of device or the transformers backend draw differently.

Its log-probabilities are no reference (those of prompts depend on the order of requests, vllm 42019): they are read
for the canary alone.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import merge
from allo_engine.held import own_bytes
from allo_engine.model.rows import give_back_freed_memory
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sampling.canary import canaries, disagreement, greedy_logps
from allo_engine.sampling.requests import Finished, Request, Response, Settings

POLL_SECONDS = 0.2

Line = dict[str, Any]
"""What the engine's process says."""


@contextmanager
def merged_folder(folder: Path, delta: Path | None, dtype: torch.dtype, work: Path | None) -> Iterator[Path]:
    """The folder that vLLM loads: the model's own or, with a delta, a merged copy in `work` for as long as this."""
    if delta is None:
        yield folder
        return
    if work is None:
        raise ValueError("a delta is merged for vLLM in the stage's folder, and there is none")
    merged = work / "merged"
    shutil.rmtree(merged, ignore_errors=True)  # what a killed run left
    try:
        merge(folder, delta, merged, dtype)
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


class VllmSampler:
    """Answers with the model in a folder, after a canary was answered as the same model does that `load` gives."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, load: Callable[[], PreTrainedModel], report: Report | None = None
    ) -> None:
        self._folder, self._dtype, self._load, self._report = folder, dtype, load, report
        self._engine: Engine | None = None
        self._serves = (0, 0)

    def sample(self, requests: Sequence[Request], settings: Settings) -> Iterator[Finished]:
        """Responses as they end, without log-probabilities.

        Raises StageError: not_served where vLLM cannot load the model here, sampler_disagrees where it does not answer
        as the model does; Stopped where the stage is asked to stop meanwhile.
        """
        if not requests:
            return
        ended = False
        try:
            yield from self._started(requests, settings).answers(requests, settings)
            ended = True
        finally:
            if not ended:  # it failed, or is at work on what nobody waits for
                self.close()

    def _started(self, requests: Sequence[Request], settings: Settings) -> Engine:
        """The engine, loaded and tried out, for requests of these lengths."""
        length = max(len(request.prompt) + request.max_tokens for request in requests)
        needed = (length, settings.rows)
        if self._engine is None or any(need > has for need, has in zip(needed, self._serves, strict=True)):
            self.close()
            asked = canaries(requests)
            model = self._load()  # before the engine takes all memory
            expected = {request.number: greedy_logps(model, request) for request in asked}
            del model
            give_back_freed_memory()
            try:
                self._engine, self._serves = Engine(self._folder, self._dtype, *needed, self._report), needed
                found = list(self._engine.answers(asked, Settings(ends=(), rows=settings.rows), logps=True))
            except EngineDied as error:
                raise StageError("not_served", _NOT_SERVED.format(reason=error)) from error
            for number, _, response in found:
                if wrong := disagreement(expected[number], response, self._dtype):
                    raise StageError("sampler_disagrees", _DISAGREES.format(wrong=wrong))
            if self._report:
                self._report.message(f"Decoding by vLLM {self._engine.version}.")
        return self._engine

    def close(self) -> None:
        """End the engine's process, and wait until it has ended."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class EngineDied(RuntimeError):
    """The engine's process ended by itself, for the reason that it told."""


class Engine:
    """The process that `vllm_engine` is. Raises EngineDied where it cannot load the model."""

    def __init__(self, folder: Path, dtype: torch.dtype, length: int, rows: int, report: Report | None) -> None:
        self._report = report
        self._said, says = os.pipe()
        plan = {"folder": str(folder), "dtype": str(dtype).removeprefix("torch."), "length": length, "rows": rows}
        command = [sys.executable, "-m", "allo_engine.sampling.vllm_engine"]
        command += [str(os.getpid()), str(says), json.dumps(plan)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,  # what a library prints belongs into the log
            env=environment(),
            pass_fds=[says],
        )
        os.close(says)
        self._lines = self._read()
        try:
            self.version = next(self._lines)["ready"]
        except BaseException:
            self.close()
            raise

    def answers(self, requests: Sequence[Request], settings: Settings, logps: bool = False) -> Iterator[Finished]:
        """Responses as they end, with vLLM's own log-probabilities if they are asked for.

        Raises EngineDied where it cannot go on.
        """
        self._ask({"requests": list(map(written, requests)), "settings": asdict(settings), "logps": logps})
        for line in self._lines:
            if "finished" not in line:
                self._note(line["done"])
                return
            number, sample, *response = line["finished"]
            yield Finished(number, sample, Response(*response))

    def _note(self, peak: int) -> None:
        if self._report:
            self._report.peak_bytes = max(self._report.peak_bytes, own_bytes() + peak)

    def close(self) -> None:
        """End it, and wait until it has ended."""
        self._process.kill()
        self._process.communicate()
        os.close(self._said)

    def _ask(self, asked: Line) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it is gone, as the end of its lines says too
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> Iterator[Line]:
        """Its lines. Raises EngineDied at their end, Stopped if that is asked for while one is waited for."""
        unread = b""
        while True:
            while not select.select([self._said], [], [], POLL_SECONDS)[0]:
                if self._report and self._report.stop_requested:
                    raise Stopped
            received = os.read(self._said, 1 << 16)
            if not received:
                raise EngineDied(f"vLLM's process ended with status {self._process.wait()}")
            *lines, unread = (unread + received).split(b"\n")
            for line in map(json.loads, lines):
                if "error" in line:
                    raise EngineDied(line["error"])
                yield line


def written(request: Request) -> Line:
    """As the engine's process is told it."""
    seeds = [[sample, request.stream_seed(sample)] for sample in request.samples]
    return {
        "number": request.number,
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "samples": seeds,
    }


def environment() -> dict[str, str]:
    """The engine's environment: one process, on this process's device, that binds no processor and speaks to nobody."""
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    wished = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    return wished | os.environ | ours | _device()


def _device() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"CUDA_VISIBLE_DEVICES": child_device(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.current_device())}


def child_device(visible: str | None, number: int) -> str:
    """What a child must see to see the device alone that is this `number` here, where `visible` are to be seen."""
    return visible.split(",")[number].strip() if visible else str(number)


_NOT_SERVED = "vLLM cannot serve this model here: {reason}. Set backend to 'transformers'."
_DISAGREES = (
    "vLLM does not answer as the model does: {wrong}. Set backend to 'transformers', and report it with vLLM's version."
)
