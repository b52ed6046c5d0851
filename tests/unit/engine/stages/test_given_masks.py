"""A job in masks that another job made, on the real stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from allo_engine.pipeline import Data
from allo_engine.report import Report, StageError
from tests.unit.engine.pipeline import aligned_folder, run_job

STAGES = {
    "warmup": {"learning_rate": 1e-3},
    "locate": {"forget_ratio": 0.03, "improve_ratio": 0.1},
    "forget": {"learning_rate": 1e-3},
    "improve": {"learning_rate": 1e-2},
}
IN_MASKS = {name: settings for name, settings in STAGES.items() if name not in ("warmup", "locate")}
DATA = Data("preferences", validation="preferences")
GIVEN = Data("preferences", validation="preferences", masks=True)


@pytest.fixture
def given(tmp_path: Path, model_folder: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    data.mkdir()
    lines = [
        {"prompt": f"say {word}", "chosen": word, "rejected": "no", "solution": word}
        for word in ("red", "blue", "green")
    ]
    (data / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"model": model_folder, "training_file": data, "validation_file": data}


def test_the_masks_alone_give_the_very_model_of_the_job_that_located_them(
    tmp_path: Path, given: dict[str, Path], report: Report
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_job(first, "allo", DATA, given, STAGES, report)
    metrics = run_job(second, "allo", GIVEN, {**given, "masks": first / "locate" / "masks"}, IN_MASKS, report)
    assert list(metrics) == ["reward_model", "token_rewards", "forget", "improve", "evaluate"]
    ours, theirs = (load_file(aligned_folder(root, given["model"]) / "model.safetensors") for root in (first, second))
    # to rounding: the warm-up leaves the reference's log-probabilities, packed with other responses
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    rows = json.loads((second / "evaluate" / "report" / "report.json").read_text())["models"]
    assert [row["model"] for row in rows] == ["base", "forget", "improve"]
    assert not any("against_warmup" in row for row in rows)


def test_masks_of_another_model_are_refused(tmp_path: Path, given: dict[str, Path], report: Report) -> None:
    (tmp_path / "masks").mkdir()
    for use in ("forget", "improve"):
        save_file({"model.norm.weight": np.ones(3, np.uint8)}, tmp_path / "masks" / f"{use}.safetensors")
    with pytest.raises(StageError) as caught:
        run_job(tmp_path / "job", "allo", GIVEN, {**given, "masks": tmp_path / "masks"}, IN_MASKS, report)
    assert caught.value.code == "wrong_base"
