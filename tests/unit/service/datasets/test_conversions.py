"""Lines as other tools have them: what they become, what is refused, and that the engine reads what came out."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from allo_engine.config import PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import negatives, pairs, problems, supervised_examples
from service.datasets import validation
from service.datasets.formats import OURS, SHAPES, faults_of
from service.datasets.validation import Limits, Summary, validate
from tests.tiny import CHAT, tiny_tokenizer

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
GSM8K = {"question": "q", "answer": "4 + 5 = <<4+5=9>>9\n#### 9"}


def converted(*rows: Any) -> tuple[Summary, list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary, the lines to train on, and the report."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    report, data = io.BytesIO(), io.BytesIO()
    summary = validate([content], report, data, Limits(100_000, 1_000_000))
    return summary, *([json.loads(line) for line in file.getvalue().splitlines()] for file in (data, report))


@pytest.mark.parametrize(
    ("form", "format", "row", "made"),
    [
        ("GSM8K", "problems", GSM8K, {"problem": "q", "solution": GSM8K["answer"], "answer": "9"}),
        (
            "GSM8K",
            "problems",
            {"question": "q", "answer": "x\n####  1,234 \n"},
            {"problem": "q", "solution": "x\n####  1,234 \n", "answer": "1,234"},
        ),
        ("Alpaca", "problems", {"instruction": "i", "input": "", "output": "o"}, {"problem": "i", "solution": "o"}),
        (
            "Alpaca",
            "problems",
            {"instruction": "i", "input": "j", "output": "o", "text": "…"},
            {"problem": "i\n\nj", "solution": "o"},
        ),
        (
            "Alpaca",
            "problems",
            {"instruction": "i", "context": "j", "response": "o", "category": "qa"},
            {"problem": "i\n\nj", "solution": "o"},
        ),
        (
            "TRL, prompts and completions",
            "problems",
            {"prompt": "p", "completion": "c"},
            {"problem": "p", "solution": "c"},
        ),
        (
            "TRL, conversational prompts and completions",
            "chats",
            {"prompt": [U, A, U], "completion": [B]},
            {"messages": [U, {**A, "weight": 0}, U, B]},
        ),
        (
            "TRL, conversational prompts and completions",
            "chats",
            {"prompt": [U], "completion": "a"},
            {"messages": [U, A]},
        ),
        (
            "TRL, implicit prompts",
            "preferences",
            {"chosen": [U, A], "rejected": [U, B]},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            "TRL, implicit prompts",
            "preferences",
            {"chosen": "The sky is blue.", "rejected": "The sky is bland."},
            {"prompt": "The sky is ", "chosen": "blue.", "rejected": "bland."},
        ),
        (
            "TRL, implicit prompts",
            "preferences",
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            "preferences with questions",
            "preferences",
            {"question": "q", "chosen": "The sky", "rejected": "The sea", "system": "s"},
            {"prompt": [{"role": "system", "content": "s"}, U], "chosen": "The sky", "rejected": "The sea"},
        ),
        (
            "preferences with questions",
            "preferences",
            {"instruction": "q", "chosen": [A], "rejected": [B], "system": ""},
            {"prompt": "q", "chosen": [A], "rejected": [B]},
        ),
        ("ShareGPT", "chats", {"conversations": [HUMAN, GPT]}, {"messages": [U, A]}),
        (
            "ShareGPT",
            "chats",
            {"conversation": [U, {**A, "weight": 1}], "system": "s", "id": 1},
            {"messages": [{"role": "system", "content": "s"}, U, {**A, "weight": 1}]},
        ),
    ],
)
def test_each_form_becomes_lines_of_a_format_of_ours(form: str, format: str, row: Any, made: Any) -> None:
    summary, data, report = converted(row, row)
    assert report == []
    assert (summary.form, summary.format, summary.converted) == (form, format, True)
    assert data == [made, made]


def test_what_is_ours_already_is_left_as_it_is() -> None:
    summary, data, _ = converted({"problem": "p", "solution": "s"})
    assert (summary.form, summary.converted, data) == ("problems", False, [])


def test_a_file_that_is_converted_may_hold_lines_of_ours_too() -> None:
    _, data, report = converted(GSM8K, {"problem": "p", "solution": "s", "id": 3})
    assert (data[1]["problem"], report) == ("p", [])


@pytest.mark.parametrize(
    ("row", "field", "wrong"),
    [
        ({"question": "q", "answer": "Paris"}, "solution", "is missing"),
        ({"instruction": "i"}, "output", "is missing"),
        ({"instruction": "i", "output": "o", "history": [["a", "b"]]}, "history", "not taken over"),
        ({"prompt": "p", "completion": "c", "label": False}, "label", "good or bad"),
        ({"prompt": [A], "completion": [A]}, None, "becomes chats whose messages[0].role is 'assistant'"),
        ({"completion": "c"}, "prompt", "is missing"),
        ({"chosen": [U, A], "rejected": [U, A]}, "rejected", "does not differ"),
        ({"chosen": [U, A], "rejected": [{**U, "content": "z"}, B]}, "prompt", "begin with different messages"),
        ({"chosen": [U, A], "rejected": [U, B, U, A]}, "rejected", "goes on for 3 messages"),
        ({"chosen": "abc", "rejected": "abd"}, "prompt", "nothing in common"),
        ({"chosen": "same", "rejected": [U, A]}, "rejected", "is a list, and chosen is a text"),
        ({"conversations": [GPT]}, None, "becomes chats whose messages[0].role"),
        ({"conversations": [{**HUMAN, "from": "observation"}]}, "conversations[0].from", "is 'observation'"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "conversations[1].value", "is missing"),
        ({"conversations": "x"}, "conversations", "is a text"),
        ({"text": "x"}, None, "none of the known fields"),
        ({"promt": "p", "chosen": "The sky", "rejected": "The sea"}, "promt", "no field of ours"),
        ({"messages": [U], "chosen": "The sky", "rejected": "The sea"}, "messages", "not taken over"),
    ],
)
def test_what_cannot_be_told_is_refused(row: Any, field: str | None, wrong: str) -> None:
    _, _, report = converted(row)
    assert [found["field"] for found in report] == [field]
    assert wrong in report[0]["wrong"]


def test_a_line_of_gsm8k_without_its_answer_is_named_as_that() -> None:
    _, data, report = converted(GSM8K, {"question": "q", "answer": "Paris"})
    assert (len(data), [found["line"] for found in report], report[0]["field"]) == (1, [2], "answer")
    assert "#### 72" in report[0]["right"]


def test_what_a_line_is_nearly_is_named() -> None:
    assert "{prompt, completion}" in converted({"text": "x"})[2][0]["right"]
    assert "GSM8K {question, answer: '… #### 72'}" in converted({"x": 1})[2][0]["right"]


# ---- properties

TEXT = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)
MESSAGES = st.lists(TEXT, min_size=1, max_size=4).map(
    lambda texts: [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
)
ANSWER = TEXT.map(lambda text: [{"role": "assistant", "content": text}])
ROWS = st.one_of(
    st.builds(lambda q, a, n: {"question": q, "answer": f"{a}\n#### {n}"}, TEXT, TEXT, st.integers()),
    st.builds(lambda i, j, o: {"instruction": i, "input": j, "output": o}, TEXT, st.text(), TEXT),
    st.builds(lambda p, c: {"prompt": p, "completion": c}, TEXT | MESSAGES, TEXT | ANSWER),
    st.builds(lambda p, c, r: {"chosen": [*p, *c], "rejected": [*p, *r]}, MESSAGES, ANSWER, ANSWER),
    st.builds(lambda p, c, r: {"chosen": f"{p} {c}", "rejected": f"{p} {r}"}, TEXT, TEXT, TEXT),
    st.builds(
        lambda messages: {"conversations": [{"from": m["role"], "value": m["content"]} for m in messages]}, MESSAGES
    ),
)


@given(ROWS)
def test_what_is_converted_is_a_line_of_its_format_and_nothing_is_lost(row: Any) -> None:
    summary, data, report = converted(row)
    assume(not report)
    assert summary.format is not None
    assert not list(faults_of(data[0], OURS[summary.format]))
    made = json.dumps(data[0], ensure_ascii=False)
    given = [value for value in _texts(row) if value.strip()]
    if not isinstance(row.get("chosen"), str):  # texts are cut elsewhere
        assert all(json.dumps(value, ensure_ascii=False)[1:-1] in made for value in given if value not in _NAMES)


_NAMES = ("user", "assistant")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [text for item in items for text in _texts(item)]


@given(TEXT, TEXT, TEXT)
def test_texts_with_a_shared_beginning_are_cut_where_no_word_is(prompt: str, chosen: str, rejected: str) -> None:
    row = {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"}
    _, data, report = converted(row)
    assume(not report)
    assert {name: data[0]["prompt"] + data[0][name] for name in row} == row
    assert data[0]["prompt"][-1] in " \n"


# ---- the engine reads it


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return Encoder(tokenizer, PromptConfig())


def uploaded(folder: Path, *rows: Any) -> Path:
    """A folder as a stage has it, with what became of the rows."""
    _, data, report = converted(*rows)
    assert not report
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return folder


def test_the_engine_reads_what_was_converted(tmp_path: Path, encoder: Encoder) -> None:
    (found,) = problems(uploaded(tmp_path, GSM8K))
    assert (found.problem, found.answer) == ("q", "9")
    chats = uploaded(tmp_path, {"prompt": [U, A, U], "completion": [B]})
    assert [encoder.decode(ids) for _, ids in supervised_examples(chats, encoder)] == ["b"]
    chats = uploaded(tmp_path, {"conversations": [HUMAN, GPT, HUMAN, GPT]})
    assert [encoder.decode(ids) for _, ids in supervised_examples(chats, encoder)] == ["a", "a"]
    preferences = uploaded(tmp_path, {"chosen": [U, A], "rejected": [U, B]}, {"chosen": [U, A], "rejected": [U, B]})
    (group,) = pairs(preferences, encoder)
    assert [encoder.decode(list(ids)) for ids in group.responses.values()] == ["a", "b"]
    assert [found.problem for found in negatives(preferences, encoder)] == ["q", "q"]


# ---- the page


def test_the_page_shows_every_form_with_lines_that_are_taken() -> None:
    page = (Path(validation.__file__).parent / "data.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```(.+)\n((?:.+\n)+)```$", page, flags=re.MULTILINE)
    assert {form for form, _ in examples} == {shape.name for shape in SHAPES}
    for form, lines in examples:
        summary, _, report = converted(*map(json.loads, lines.splitlines()))
        assert (summary.form, report) == (form, [])
