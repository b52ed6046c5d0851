"""Stage `sample`: what is drawn for a problem is its own affair, and what was drawn is never drawn again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from allo_engine.config import EvaluateConfig, SampleConfig
from allo_engine.data.records import SampledProblem
from allo_engine.report import Report, Stopped
from allo_engine.stages import evaluate, sample
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import write_problems

CONFIG = SampleConfig(n=3, temperature=1.0, max_response_tokens=40, template="{problem}:")
LONG = {"problem": "x" * 500, "solution": "y", "answer": "z"}
"""At the tiny model's context of 512 it leaves ten tokens for a response."""


def sampled(root: Path, model: Path, data: Path, report: Report) -> dict[str, SampledProblem]:
    sample.run(CONFIG, {"model": model, "problems": data}, root / "out", root / "work", report)
    return {found.problem: found for found in SampledProblem.read(root / "out" / "responses" / "responses.jsonl")}


def with_a_long_one(folder: Path) -> Path:
    with (write_problems(folder) / "data.jsonl").open("a") as file:
        file.write(json.dumps(LONG) + "\n")
    return folder


def test_a_long_prompt_shortens_no_others_responses(tmp_path: Path, model_folder: Path, report: Report) -> None:
    without = sampled(tmp_path / "a", model_folder, write_problems(tmp_path / "data"), report)
    found = sampled(tmp_path / "b", model_folder, with_a_long_one(tmp_path / "longer"), report)
    long = found.pop(LONG["problem"])
    assert {key: one.responses for key, one in found.items()} == {key: one.responses for key, one in without.items()}
    assert max(len(ids) for one in found.values() for ids in one.responses) == 40
    room = 512 - len(long.prompt_ids)
    assert room < 40
    assert all(len(ids) <= room for ids in long.responses)
    assert any(len(ids) == room for ids in long.responses)


def test_a_long_prompt_shortens_no_others_answers(tmp_path: Path, model_folder: Path, report: Report) -> None:
    config = EvaluateConfig(max_response_tokens=40, template="{problem}:", examples=8)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, data in (("a", write_problems(tmp_path / "data")), ("b", with_a_long_one(tmp_path / "longer"))):
        inputs = {"base": model_folder, "heldout": data}
        evaluate.run(config, inputs, tmp_path / name, tmp_path / f"{name} work", report)
        found[name] = json.loads((tmp_path / name / "report" / "report.json").read_text())["models"][0]["examples"]
    assert found["a"] == found["b"]


class StopsAfter(Lines):
    """A stream whose report is asked to stop at a line of progress."""

    report: Report

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def write(self, text: str) -> int:
        line = json.loads(text)
        if line["type"] == "progress" and line["step"] >= self.step:
            self.report.stop_requested = True
        return super().write(text)


@pytest.mark.parametrize("torn", ["", '{"number": 3, "samp'])
def test_a_resumed_run_draws_nothing_anew(tmp_path: Path, model_folder: Path, report: Report, torn: str) -> None:
    data = write_problems(tmp_path / "data")
    whole = sampled(tmp_path / "whole", model_folder, data, report)
    stops = StopsAfter(7)
    stops.report = Report(stops, every_seconds=0)
    with pytest.raises(Stopped):
        sampled(tmp_path / "cut", model_folder, data, stops.report)
    kept = tmp_path / "cut" / "work" / "responses.jsonl"
    before = kept.read_text()
    assert len(before.splitlines()) == 7
    kept.write_text(before + torn)
    assert sampled(tmp_path / "cut", model_folder, data, report) == whole
    assert kept.read_text().startswith(before)
    drawn = [(line["number"], line["sample"]) for line in map(json.loads, kept.read_text().splitlines())]
    assert len(set(drawn)) == len(drawn) == 24


def test_a_response_that_has_rotted_is_drawn_anew(tmp_path: Path, model_folder: Path, stream: Lines) -> None:
    data, report = write_problems(tmp_path / "data"), Report(stream)
    first = sampled(tmp_path, model_folder, data, report)
    kept = tmp_path / "work" / "responses.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    flipped = lines[1].replace(b'"response": [[', b'"response": [[1')
    lines[1:4] = [flipped, b"\xff" + lines[2], lines[3][:-2] + b"\n"]
    kept.write_bytes(b"".join(lines))
    assert sampled(tmp_path, model_folder, data, report) == first
    assert "3 kept responses are damaged and are drawn anew." in stream.getvalue()


def test_a_resumed_evaluation_asks_nothing_again(tmp_path: Path, model_folder: Path, report: Report) -> None:
    """It is cut in the midst of its second model."""
    config = EvaluateConfig(max_response_tokens=12, template="{problem}:", examples=8)
    other, data = save_tiny(tmp_path / "other", seed=1), write_problems(tmp_path / "data")

    def evaluated(root: Path, report: Report) -> bytes:
        inputs = {"base": model_folder, "sft": other, "heldout": data}
        evaluate.run(config, inputs, root / "out", root / "work", report)
        return (root / "out" / "report" / "report.json").read_bytes()

    stops = StopsAfter(11)
    stops.report = Report(stops, every_seconds=0)
    with pytest.raises(Stopped):
        evaluated(tmp_path / "cut", stops.report)
    kept = tmp_path / "cut" / "work" / "sft.jsonl"
    before = kept.read_text()
    assert len(before.splitlines()) == 3
    assert evaluated(tmp_path / "cut", report) == evaluated(tmp_path / "whole", report)
    assert kept.read_text().startswith(before)
    assert sorted(json.loads(line)["number"] for line in kept.read_text().splitlines()) == list(range(8))
