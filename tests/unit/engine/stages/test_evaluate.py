"""Evaluation where the device's memory is full; options by hand; cases that have names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM

from allo_engine.config import EvaluateConfig, PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.report import Report, StageError
from allo_engine.stages import evaluate
from tests.teacher import teacher
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines

WORDS = ("red", "blue", "green", "grey", "black", "white", "orange", "purple", "violet")


@contextmanager
def device_for(tokens: int) -> Iterator[list[int]]:
    """Any model here runs out of memory as a device does, in rows of more tokens; the rows that were tried."""
    tried: list[int] = []

    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Embedding):
            tried.append(given[0].shape[1])
            if tried[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_pre_hook(hook)
    try:
        yield tried
    finally:
        handle.remove()


def lines_of(kind: str) -> list[dict[str, Any]]:
    if kind == "pairs":
        return [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in WORDS]
    chats = [[("user", f"say {word}"), ("assistant", word)] for word in WORDS]
    return [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]


def evaluated(root: Path, kind: str, other: Path, base: Path, report: Report) -> dict[str, float]:
    held_out = root / "data"
    held_out.mkdir(parents=True)
    (held_out / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(kind)))
    config = EvaluateConfig(micro_batch_tokens=128, template="{problem}:")
    inputs = {"heldout": held_out, "base": base, "warmup": other}
    return evaluate.run(config, inputs, root / "out", root / "work", report)


@pytest.mark.parametrize("kind", ["pairs", "chats"])
def test_rows_are_halved_where_memory_is_full_and_the_figures_stay(
    tmp_path: Path, model_folder: Path, report: Report, stream: Lines, kind: str
) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    expected = evaluated(tmp_path / "enough", kind, other, model_folder, report)
    with device_for(64) as tried:
        found = evaluated(tmp_path / "full", kind, other, model_folder, report)
    assert found == pytest.approx(expected, abs=1e-4)
    assert [rows > 64 for rows in tried].count(True) == 1, "the first row alone is tried in vain"
    told = [line["data"]["micro_batch_tokens"] for line in stream.lines() if line.get("level") == "warn"]
    assert told == [64]
    assert json.loads((tmp_path / "full" / "work" / "rows.json").read_text())["tokens"] == 64


def test_an_item_that_does_not_fit_alone_says_what_to_change(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    with device_for(4), pytest.raises(StageError, match="max_prompt_tokens") as caught:
        evaluated(tmp_path, "pairs", model_folder, model_folder, report)
    assert caught.value.code == "out_of_memory"


CHOICES = [
    {"problem": "what is red?\nOptions:\nblood\nsnow\nthe grass below", "solution": "", "answer": "blood"},
    {"problem": "say x", "solution": "", "answer": "x"},
    {"problem": "what is white?\nA) coal\nB) snow", "solution": "", "answer": "B"},
]


def on_problems(
    root: Path,
    base: Path,
    report: Report,
    lines: list[dict[str, Any]],
    inputs: dict[str, Path] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The report of one model, or of those in `inputs`."""
    held_out = root / "data"
    held_out.mkdir(parents=True)
    (held_out / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = EvaluateConfig(max_response_tokens=4, template="{problem}:", **settings)
    evaluate.run(config, {"heldout": held_out, "base": base, **(inputs or {})}, root / "out", root / "work", report)
    found: dict[str, Any] = json.loads((root / "out" / "report" / "report.json").read_text())
    return found


def test_what_the_same_weights_answered_before_is_not_asked_again(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    def evaluated(name: str, base: Path = model_folder, lines: list[dict[str, Any]] = CHOICES) -> tuple[Any, int]:
        """The report, and how often a model was put to anything."""
        with device_for(10**6) as tried:
            shared = {"cache": tmp_path / "cache"}
            found = on_problems(tmp_path / name, base, report, lines, shared, options=False, samples=2, examples=3)
        return found, len(tried)

    first, asked = evaluated("first")
    assert asked > 0
    assert evaluated("again") == (first, 0)
    assert evaluated("other model", save_tiny(tmp_path / "other", seed=1))[1] > 0
    more = [*CHOICES, {"problem": "say y", "solution": "", "answer": "y"}]
    found, _ = evaluated("another problem", lines=more)
    drawn = (tmp_path / "another problem" / "work" / "base.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in drawn] == [3]
    assert found["models"][0]["examples"] == first["models"][0]["examples"]


def test_in_16_bits_answers_are_nobody_elses(tmp_path: Path, model_folder: Path, report: Report) -> None:
    shared = {"cache": tmp_path / "cache"}
    on_problems(tmp_path / "first", model_folder, report, CHOICES, shared, precision="bfloat16")
    assert not (tmp_path / "cache" / "answers.db").exists()


def test_the_likeliest_option_is_that_of_the_models_own_log_probabilities(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    encoder = Encoder.of(model_folder, PromptConfig(template="{problem}:"))

    def logp(problem: str, option: str) -> float:
        """Σ log p of " option" behind the prompt and "The answer is", by one plain forward pass."""
        before = encoder.prompt(problem) + encoder.text("The answer is")
        ids = torch.tensor([before + encoder.text(f" {option}")])
        logps = model(ids).logits[0].detach().log_softmax(-1)
        return sum(float(logps[place - 1, ids[0, place]]) for place in range(len(before), ids.shape[1]))

    asked = [("blood", "snow", "the grass below"), ("A", "B")]
    lists = [
        [logp(CHOICES[at]["problem"], option) for option in options] for at, options in zip((0, 2), asked, strict=True)
    ]
    a_character = [
        [value / len(option) for value, option in zip(logps, options, strict=True)]
        for logps, options in zip(lists, asked, strict=True)
    ]
    right = [values.index(max(values)) == gold for values, gold in zip(a_character, (0, 1), strict=True)]
    raw = [values.index(max(values)) == gold for values, gold in zip(lists, (0, 1), strict=True)]
    shares = [torch.tensor(logps).log_softmax(0)[gold].item() for logps, gold in zip(lists, (0, 1), strict=True)]

    (row,) = on_problems(tmp_path, model_folder, report, CHOICES)["models"]
    assert row["option_cases"] == [right[0], None, right[1]]
    assert (row["option_problems"], row["option_accuracy"]) == (2, sum(right) / 2)
    assert row["option_accuracy_raw"] == sum(raw) / 2
    assert row["option_logp"] == pytest.approx(sum(shares) / 2, abs=1e-4)


def test_a_case_has_the_same_name_wherever_it_stands_and_whatever_it_is_asked_for(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    one = on_problems(tmp_path / "one", model_folder, report, CHOICES)["cases"]
    twice = [CHOICES[2], CHOICES[0], CHOICES[2]]
    other = on_problems(tmp_path / "other", model_folder, report, twice, options=False)
    assert other["cases"][:2] == [one[2], one[0]]
    assert len({*one, *other["cases"]}) == 4, "a repeated problem is another case"
    assert "option_cases" not in other["models"][0]


def test_answers_stand_beside_the_report_a_line_a_case(tmp_path: Path, model_folder: Path, report: Report) -> None:
    cases = on_problems(tmp_path, model_folder, report, CHOICES)["cases"]
    texts = [json.loads(line) for line in (tmp_path / "out" / "report" / "texts.jsonl").read_text().splitlines()]
    assert [line["case"] for line in texts] == cases
    assert [line["problem"] for line in texts] == [line["problem"] for line in CHOICES]
    assert all(line["models"]["base"]["verdict"] in ("right", "wrong", "unparsed") for line in texts)


@pytest.mark.parametrize(
    ("given", "ks"),
    [({}, ()), ({"samples": 3}, (1,)), ({"samples": 8}, (1, 4, 8)), ({"samples": 8, "k": (5, 2, 5)}, (2, 5))],
)
def test_k_is_what_the_samples_allow_unless_it_is_said(given: dict[str, Any], ks: tuple[int, ...]) -> None:
    assert EvaluateConfig.model_validate(given).ks() == ks


def test_a_k_above_the_samples_is_refused_and_says_what_to_raise() -> None:
    with pytest.raises(ValidationError, match="raise samples"):
        EvaluateConfig(samples=4, k=(1, 8))


@pytest.mark.parametrize("kind", ["pairs", "chats", "problems"])
def test_the_first_and_the_last_model_are_put_to_the_retention_file(
    tmp_path: Path, model_folder: Path, report: Report, kind: str
) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    kept = tmp_path / "kept"
    kept.mkdir()
    lines = CHOICES if kind == "problems" else lines_of(kind)
    (kept / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = {"base": model_folder, "sft": other, "warmup": other, "retention": kept}
    found = on_problems(tmp_path, model_folder, report, CHOICES[1:2], inputs=folders, samples=2)
    base, between, last = found["models"]
    assert base["pass_at_1"] >= 0
    assert "retention" not in between
    change = last["retention"]["against_base"]
    if kind == "chats":
        losses = [row["retention"]["cross_entropy"] for row in (base, last)]
        expected = on_chats(kept, other, report, tmp_path)
        assert losses[1] == pytest.approx(expected)
        each = [sum(row["retention"]["losses"]) / len(row["retention"]["losses"]) for row in (base, last)]
        assert change["difference"] == pytest.approx(each[1] - each[0])
    else:
        rights = [sum(row["retention"]["cases"]) for row in (base, last)]
        assert change["difference"] == pytest.approx((rights[1] - rights[0]) / len(lines))
    assert "sampled_right" not in last["retention"], "greedy answers do"
    assert change["low"] <= change["difference"] <= change["high"]


def on_chats(folder: Path, model: Path, report: Report, root: Path) -> float:
    """The cross-entropy of a job that has the file as its held-out one."""
    inputs = {"heldout": folder, "base": model}
    config = EvaluateConfig(max_response_tokens=4, template="{problem}:")
    return evaluate.run(config, inputs, root / "out2", root / "work2", report)["base_cross_entropy"]


def test_a_judge_compares_the_last_models_answers_with_those_of_the_model_it_is_told(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    folders = {"sft": save_tiny(tmp_path / "other", seed=1), "warmup": model_folder}
    plain = on_problems(tmp_path / "plain", model_folder, report, CHOICES, inputs=folders)
    texts = [
        json.loads(line) for line in (tmp_path / "plain" / "out" / "report" / "texts.jsonl").read_text().splitlines()
    ]
    of_sft = {line["problem"]: line["models"]["sft"]["answer"] for line in texts}
    assert all(
        answer != line["models"]["warmup"]["answer"] for line, answer in zip(texts, of_sft.values(), strict=True)
    )

    def prefers_sft(question: str, _: int) -> tuple[int, Any]:
        problem = next(text for text in of_sft if f"[Question]\n{text}\n\n[Answer A]" in question)
        return 200, "[[A]]" if f"[Answer A]\n{of_sft[problem]}\n[End" in question else "[[B]]"

    with teacher(prefers_sft) as server:
        judge = {"base_url": server.url, "model": "judge", "problems": 2}
        against = {"judge": {**judge, "against": "sft"}}
        found = on_problems(tmp_path / "judged", model_folder, report, CHOICES, inputs=folders, **against)
        assert len(server.questions) == 4
        same = on_problems(
            tmp_path / "same", model_folder, report, CHOICES, inputs=folders, judge={**judge, "against": "base"}
        )
        assert len(server.questions) == 4, "equal answers need no judge"
    last = found["models"][-1]
    assert (last["judged_against"], last["judged"], last["losses"], last["win_rate"]) == ("sft", 2, 2, 0.0)
    assert (same["models"][-1]["ties"], same["models"][-1]["win_rate"]) == (2, 0.5)
    assert "judged" not in plain["models"][-1]
