"""lm-evaluation-harness puts a job's models to tasks from a folder: the real one, on files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allo_engine.config import HARNESS_TASKS, EvaluateConfig
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import evaluate
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines

CASES = [
    {"question": f"{first} and {second}?", "choices": ["red", "blue thing", "8"], "answer": (first + second) % 3}
    for first in range(4)
    for second in range(3)
]

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "colours.jsonl"
    data.write_text("".join(json.dumps(case) + "\n" for case in CASES))
    (folder / "colours.yaml").write_text(CHOICE.format(data=data))
    monkeypatch.setenv(HARNESS_TASKS, str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


def inputs(root: Path, base: Path) -> dict[str, Path]:
    held_out = root / "heldout"
    held_out.mkdir()
    (held_out / "data.jsonl").write_text('{"problem": "1 + 1", "solution": "2", "answer": "2"}\n')
    return {"heldout": held_out, "base": base, "warmup": save_tiny(root / "other", seed=1)}


def config(**harness: Any) -> EvaluateConfig:
    return EvaluateConfig(max_response_tokens=4, template="{problem}:", harness={"tasks": ["colours"], **harness})


def accuracy(folder: Path) -> float:
    """By transformers alone: whose continuation is the likeliest."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = 0
    for case in CASES:
        prompt = tokenizer(f"Q: {case['question']}\nA:").input_ids
        logps = []
        for choice in case["choices"]:  # type: ignore[attr-defined]
            ids = tokenizer(f"Q: {case['question']}\nA: {choice}").input_ids
            with torch.no_grad():
                all_logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            own = range(len(prompt), len(ids))
            logps.append(sum(all_logps[place - 1, ids[place]].item() for place in own))
        right += logps.index(max(logps)) == case["answer"]
    return right / len(CASES)


def test_every_model_has_the_figures_that_transformers_gives(tmp_path: Path, tasks: Path, report: Report) -> None:
    found = inputs(tmp_path, save_tiny(tmp_path / "base"))
    metrics = evaluate.run(config(), found, tmp_path / "out", tmp_path / "work", report)
    written = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["models"]
    for row in written:
        assert row["harness"]["colours"]["acc"] == accuracy(found[row["model"]])
        assert row["harness"]["colours"]["acc_stderr"] > 0
        assert metrics[f"{row['model']}_colours_acc"] == row["harness"]["colours"]["acc"]
    assert len(written) == 2


def test_a_task_that_is_not_there_is_named_before_any_model_is_loaded(
    tmp_path: Path, tasks: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inputs(tmp_path, save_tiny(tmp_path / "base"))
    with pytest.raises(StageError, match=r"names arc, which .* it has colours"):
        evaluate.run(config(tasks=["arc"]), found, tmp_path / "out", tmp_path / "work", report)
    monkeypatch.delenv(HARNESS_TASKS)
    with pytest.raises(StageError, match=f"set {HARNESS_TASKS}"):
        evaluate.run(config(), found, tmp_path / "out", tmp_path / "work", report)


def test_a_stage_that_must_stop_stops_within_the_harness(
    tmp_path: Path, tasks: Path, report: Report, stream: Lines
) -> None:
    found = inputs(tmp_path, save_tiny(tmp_path / "base"))
    answered = evaluate.run(config(limit=1), found, tmp_path / "out", tmp_path / "work", report)
    assert answered["base_colours_acc"] in (0, 1)
    report.stop_requested = True
    with pytest.raises(Stopped):
        evaluate.run(config(), found, tmp_path / "again", tmp_path / "afresh", report)


@pytest.mark.parametrize("name", ["../colours", "/data/colours.yaml", "", "a b", '{"task": "x"}'])
def test_a_job_names_tasks_and_never_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="tasks"):
        config(tasks=[name])
