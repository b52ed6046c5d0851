"""Stages that let vLLM answer: what they leave behind, on disk and of processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allo_engine.checkpoints.delta import write_delta
from allo_engine.config import EvaluateConfig, SampleConfig
from allo_engine.report import Report, Stopped
from allo_engine.stages import evaluate, sample
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.stages.test_sample import StopsAfter
from tests.waiting import PATIENCE, until


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_problems(tmp_path / "data")


def sampled(root: Path, folder: Path, data: Path, report: Report, **settings: Any) -> bytes:
    """The stage's records, as they are on disk."""
    config = SampleConfig(n=3, max_response_tokens=40, template="{problem}:", **settings)
    inputs = {"model": folder, "problems": data, "cache": root / "cache"}
    sample.run(config, inputs, root / "out", root / "work", report)
    return (root / "out" / "responses" / "responses.jsonl").read_bytes()


def test_both_backends_write_the_same_file(tmp_path: Path, folder: Path, data: Path, report: Report) -> None:
    own, found = (
        sampled(tmp_path / backend, folder, data, report, temperature=0, backend=backend)
        for backend in ("transformers", "vllm")
    )
    assert found == own
    kept = {}
    for backend in ("transformers", "vllm"):
        with closing(sqlite3.connect(tmp_path / backend / "cache" / "logps.db")) as cache:
            kept[backend] = cache.execute("SELECT count(*) FROM logps").fetchone()[0]
    assert kept["transformers"] > 0
    assert kept["vllm"] == 0, "its log-probabilities are no reference"


def test_a_resumed_run_draws_nothing_anew(tmp_path: Path, folder: Path, data: Path, report: Report) -> None:
    whole = sampled(tmp_path / "whole", folder, data, report, backend="vllm", temperature=1.0)
    stops = StopsAfter(7)
    stops.report = Report(stops, every_seconds=0)
    with pytest.raises(Stopped):
        sampled(tmp_path / "cut", folder, data, stops.report, backend="vllm", temperature=1.0)
    kept = tmp_path / "cut" / "work" / "responses.jsonl"
    before = kept.read_text()
    assert len(before.splitlines()) == 7
    assert sampled(tmp_path / "cut", folder, data, report, backend="vllm", temperature=1.0) == whole
    assert kept.read_text().startswith(before)
    drawn = [(line["number"], line["sample"]) for line in map(json.loads, kept.read_text().splitlines())]
    assert len(set(drawn)) == len(drawn) == 24


def test_evaluation_is_the_same_by_either(tmp_path: Path, folder: Path, data: Path, report: Report) -> None:
    """Of a model, and of a sparse checkpoint of it, which is merged for vLLM and leaves nothing."""
    entries = np.arange(0, 30_000, 11)
    write_delta(
        {"model.embed_tokens.weight": (entries, np.full(len(entries), 0.3, np.float32))}, folder, tmp_path / "delta"
    )
    inputs = {"base": folder, "improve": tmp_path / "delta", "heldout": data}
    reports = {}
    for backend in ("transformers", "vllm"):
        config = EvaluateConfig(max_response_tokens=12, template="{problem}:", examples=8, backend=backend)
        evaluate.run(config, inputs, tmp_path / backend, tmp_path / "work" / backend, report)
        reports[backend] = json.loads((tmp_path / backend / "report" / "report.json").read_text())["models"]
        left = {path.name for path in (tmp_path / "work" / backend).iterdir()}
        own = {f"{name}.{kind}" for name in ("base", "improve") for kind in ("json", "jsonl")}
        assert left == own | {"answers.db"}  # the cache, which lies there where nobody gives one
    assert reports["vllm"] == reports["transformers"]
    answers = [{example["answer"] for example in line["examples"]} for line in reports["vllm"]]
    assert answers[0] != answers[1]


def test_a_resumed_evaluation_asks_nothing_again(tmp_path: Path, folder: Path, data: Path, report: Report) -> None:
    config = EvaluateConfig(max_response_tokens=12, template="{problem}:", examples=8, backend="vllm")
    inputs = {"base": folder, "heldout": data}
    stops = StopsAfter(3)
    stops.report = Report(stops, every_seconds=0)
    with pytest.raises(Stopped):
        evaluate.run(config, inputs, tmp_path / "out", tmp_path / "cut", stops.report)
    before = (tmp_path / "cut" / "base.jsonl").read_text()
    evaluate.run(config, inputs, tmp_path / "out", tmp_path / "cut", report)
    found = (tmp_path / "out" / "report" / "report.json").read_bytes()
    after = (tmp_path / "cut" / "base.jsonl").read_text()
    assert (len(before.splitlines()), len(after.splitlines())) == (3, 8)
    assert after.startswith(before)
    evaluate.run(config, inputs, tmp_path / "out", tmp_path / "whole", report)
    assert (tmp_path / "out" / "report" / "report.json").read_bytes() == found


def processes(mark: str) -> list[int]:
    """Engines that serve a model with this in its folder's name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if "vllm_engine" in command and mark in command:
                found.append(int(entry.name))
    return found


@pytest.fixture
def stage(tmp_path: Path, folder: Path, data: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts stage sample behind a command, and returns when vLLM has answered some of it."""
    link = tmp_path / "served"
    link.symlink_to(folder)
    started: list[subprocess.Popen[bytes]] = []

    def start(*before: str, n: int = 500) -> subprocess.Popen[bytes]:
        config = {"n": n, "max_response_tokens": 60, "template": "{problem}:", "backend": "vllm"}
        task = {"config": config, "inputs": {"model": str(link), "problems": str(data)}}
        task |= {"outputs": str(tmp_path / "out"), "work": str(tmp_path / "work")}
        (tmp_path / "task.json").write_text(json.dumps(task))
        command = [*before, sys.executable, "-m", "allo_engine", "sample", "--config", str(tmp_path / "task.json")]
        with (tmp_path / "said").open("wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, start_new_session=True)
        started.append(process)
        until(lambda: lines(tmp_path) > 3 or process.poll() is not None)
        assert len(processes(str(link))) == 1
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE)


def lines(root: Path) -> int:
    path = root / "work" / "responses.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_stages_peak_is_that_of_its_engine_too(tmp_path: Path, stage: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = stage(n=60)
    (engine,) = processes(str(tmp_path))
    counts = dict(line.split(":") for line in Path(f"/proc/{engine}/status").read_text().splitlines())
    assert process.wait(timeout=PATIENCE) == 0
    result = json.loads((tmp_path / "said").read_text().splitlines()[-1])
    assert result["metrics"]["peak_memory_bytes"] > 1024 * int(counts["VmHWM"].split()[0])


def test_a_stage_that_is_killed_leaves_no_engine(tmp_path: Path, stage: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = stage()
    process.kill()
    until(lambda: not processes(str(tmp_path)))


def test_a_stage_that_is_stopped_keeps_what_came_and_leaves_no_engine(
    tmp_path: Path, stage: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A terminal or a host that shuts down tells the whole group: the engine leaves it to the stage."""
    process = stage()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 75
    assert not processes(str(tmp_path))
    assert 3 < lines(tmp_path) < 4000


def test_under_the_supervisor_no_engine_outlives_a_stage(
    tmp_path: Path, stage: Callable[..., subprocess.Popen[bytes]]
) -> None:
    supervisor = stage(sys.executable, "-m", "worker.supervisor", "--grace", "600", "--lease", "600", "--")
    assert supervisor.stdin
    supervisor.stdin.write(b"kill\n")
    supervisor.stdin.flush()
    assert supervisor.wait(timeout=PATIENCE) == 128 + signal.SIGKILL
    assert not processes(str(tmp_path))
