"""What a file is to a model: the tokens that stages train on, a preview of them, and overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo_engine.data import insight
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import pairs, supervised_examples
from allo_engine.report import StageError
from tests.tiny import save_tiny

USER, ANSWER = {"role": "user", "content": "why é?"}, {"role": "assistant", "content": "so 😀"}
OTHER = {"role": "assistant", "content": "no"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


CHAT = {"messages": [USER, ANSWER, USER, {**ANSWER, "weight": 0}, USER, OTHER]}


def test_lengths_are_those_of_what_the_stages_train_on(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", CHAT, {"problem": "1+1?", "solution": "2"})
    found = insight.insight(model, file, None)["tokens"]
    examples = list(supervised_examples(tmp_path, Encoder.of(model)))
    lengths = sorted(len(prompt) + len(response) for prompt, response in examples)
    assert found["total"] == {"min": lengths[0], "median": lengths[1], "p95": lengths[2], "max": lengths[2]}
    assert (found["lines"], found["sequences"], found["longer_than_model"]) == (2, 3, 0)


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_the_histogram_counts_every_length_once_in_few_bars(lengths: list[int]) -> None:
    found = insight._histogram(lengths)
    assert found is not None
    width, counts = found["width"], found["counts"]
    assert counts == [
        sum(place * width <= length < (place + 1) * width for length in lengths) for place in range(len(counts))
    ]
    assert sum(counts) == len(lengths)
    assert len(counts) <= insight.MOST_BARS


def test_the_preview_is_the_template_with_the_trained_tokens_marked(model: Path, tmp_path: Path) -> None:
    preview = insight.insight(model, write(tmp_path / "data.jsonl", CHAT, CHAT, CHAT, CHAT), None)["preview"]
    assert [line["line"] for line in preview] == [1, 2, 3]
    first, last = preview[0]["sequences"]
    assert first["segments"] == [
        {"text": "<|user|>why é?<|end|><|assistant|>", "trained": False},
        {"text": "so 😀<|end|>", "trained": True},
    ]
    assert last["segments"][1] == {"text": "no<|end|>", "trained": True}
    assert first["trained_tokens"] == len(Encoder.of(model).response("so 😀"))


def test_of_preferences_both_answers_are_shown(model: Path, tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
    ((line),) = insight.insight(model, write(tmp_path / "data.jsonl", row), None)["preview"]
    assert [found["of"] for found in line["sequences"]] == ["chosen", "rejected"]
    (group,) = pairs(tmp_path, Encoder.of(model))
    assert [found["trained_tokens"] for found in line["sequences"]] == [len(r) for r in group.responses.values()]


def test_long_texts_are_shown_in_part(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", {"problem": "x" * 10_000, "solution": "y"})
    found = insight.insight(model, file, None)
    assert len(found["preview"][0]["sequences"][0]["segments"][0]["text"]) < 4100
    assert found["tokens"]["longer_than_model"] == 1


def test_of_a_large_file_lines_are_measured_all_over_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insight, "MOST_LINES", 10)
    file = write(tmp_path / "data.jsonl", *({"problem": "x" * (n + 1), "solution": "y"} for n in range(95)))
    found = insight.insight(model, file, None)["tokens"]
    assert (found["lines"], found["lines_measured"]) == (95, 10)
    assert found["prompt"]["max"] - found["prompt"]["min"] == 90


def test_corrections_are_measured_too(model: Path, tmp_path: Path) -> None:
    row = {"question": "p", "output": "s", "prediction": "x", "correction": "yy"}
    found = insight.insight(model, write(tmp_path / "data.jsonl", row), None)
    assert [sequence["of"] for sequence in found["preview"][0]["sequences"]] == ["prediction", "correction"]


def test_a_template_that_cannot_write_a_line_is_a_refusal(model: Path, tmp_path: Path) -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]}
    with pytest.raises(StageError, match="tool calls"):
        insight.insight(model, write(tmp_path / "data.jsonl", row), None)


NUMBERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=12)


@given(NUMBERS, NUMBERS)
def test_overlap_is_what_a_validation_file_shares(
    tmp_path_factory: pytest.TempPathFactory, training: list[tuple[int, int]], validation: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("overlap")

    def problem(row: tuple[int, int]) -> dict[str, str]:
        return {"solution": str(row[1]), "problem": str(row[0])}

    def chat(row: tuple[int, int]) -> dict[str, Any]:
        asked = {"role": "user", "content": str(row[0])}
        return {"messages": [asked, {"role": "assistant", "content": str(row[1])}]}

    found = insight._overlap(
        write(folder / "a.jsonl", *map(problem, training)), write(folder / "b.jsonl", *map(problem, validation))
    )
    asked = {row[0] for row in training}
    assert found == {
        "lines": sum(row in training for row in validation),
        "prompts": sum(r[0] in asked for r in validation),
    }
    across = insight._overlap(folder / "a.jsonl", write(folder / "c.jsonl", *map(chat, validation)))
    assert across == {"lines": 0, "prompts": found["prompts"]}


def test_overlap_of_a_large_file_is_told_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insight, "MOST_DIGESTS", 500)
    rows = [{"problem": str(n), "solution": "s"} for n in range(4000)]
    found = insight._overlap(write(tmp_path / "a.jsonl", *rows[:2000]), write(tmp_path / "b.jsonl", *rows))
    assert 1400 < found["lines"] < 2600
