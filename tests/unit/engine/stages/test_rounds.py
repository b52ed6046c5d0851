"""Aligning in rounds: what a later round starts from, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from allo_engine.checkpoints.delta import Values, read_delta, write_delta
from allo_engine.config import ImproveConfig
from allo_engine.data.records import PairGroup, SampledProblem, write_lines
from allo_engine.masking.selection import positions
from allo_engine.pipeline import Data
from allo_engine.report import Report
from allo_engine.stages import improve
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import aligned_folder, run_job, write_problems
from tests.unit.engine.stages.test_stages import SETTINGS

TWICE = {
    "sft": SETTINGS["sft"],
    "sample": {**SETTINGS["sample"], "rounds": 2},
    "locate": {"importance": "random", "improve_ratio": 0.1, "later_rounds": "fresh"},
    "forget": None,
    "improve": SETTINGS["improve"],
    "evaluate": SETTINGS["evaluate"],
}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("rounds")
    data = write_problems(root / "data")
    given = {"model": model_folder, "training_file": data, "validation_file": data}
    run_job(root, "allo", Data("problems", validation="problems"), given, TWICE, Report(Lines()))
    return root


def entries(root: Path, stage: str) -> Values:
    return read_delta(root / stage / "delta", root / "sft" / "checkpoint")


def test_a_second_round_goes_on_from_the_first_ones_model_in_masks_of_its_own(twice: Path) -> None:
    first, second = entries(twice, "improve"), entries(twice, "improve-2")
    fresh = load_file(twice / "locate-2" / "masks" / "improve.safetensors")
    changed = 0
    for name, (places, values) in first.items():
        after = dict(zip(*(found.tolist() for found in second[name]), strict=True))
        inside = np.isin(places, positions(fresh[name], 8 * len(fresh[name])))
        kept = np.array([after[place] for place in places.tolist()], dtype=np.float32) == values
        assert kept[~inside].all()
        changed += int((~kept).sum())
    assert changed
    assert sum(len(places) for places, _ in second.values()) > sum(len(places) for places, _ in first.values())


def test_its_samples_are_those_of_the_first_ones_model(twice: Path) -> None:
    first, second = (
        SampledProblem.read(twice / stage / "responses" / "responses.jsonl") for stage in ("sample", "sample-2")
    )
    assert [one.problem for one in first] == [one.problem for one in second]
    assert [one.texts for one in first] != [one.texts for one in second]


def test_the_report_has_each_rounds_model(twice: Path) -> None:
    report = json.loads((twice / "evaluate" / "report" / "report.json").read_text())
    assert [row["model"] for row in report["models"]] == ["base", "sft", "improve", "improve-2"]


def test_a_later_rounds_scale_is_of_what_the_round_changed(tmp_path: Path, model_folder: Path, report: Report) -> None:
    """The round before left two weights at w + 1; this round takes all weights on from there. With scale ½ each ends
    halfway between where this round began and where it ends with scale 1."""
    name = "model.norm.weight"
    start = load_file(model_folder / "model.safetensors")[name]
    before = {name: (np.array([0, 1]), start[:2] + np.float32(1))}
    write_delta(before, model_folder, tmp_path / "aligned")
    write_lines(tmp_path / "pairs" / "pairs.jsonl", [PairGroup([1, 2], [[3, 4], [5, 6]], [(0, 1)])])
    inputs = {"model": model_folder, "pairs": tmp_path / "pairs", "aligned": tmp_path / "aligned"}
    found = {}
    for scale in (1.0, 0.5):
        config = ImproveConfig(train="all", learning_rate=1e-2, scale=scale, warmup_ratio=0)
        out = tmp_path / str(scale)
        improve.run(config, inputs, out, tmp_path / f"work-{scale}", report)
        found[scale] = load_file(aligned_folder(tmp_path, model_folder, out.name) / "model.safetensors")
    origin = load_file(model_folder / "model.safetensors")
    origin[name] = origin[name].copy()
    origin[name][:2] += 1
    for weight, value in origin.items():
        assert np.allclose(found[0.5][weight], (value + found[1.0][weight]) / 2, atol=1e-6)
    assert not np.allclose(found[1.0][name], origin[name], atol=1e-4)
