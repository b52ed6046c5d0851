"""Shares of a file by content: what one stage learns from and the other leaves out."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import problems, supervised_examples
from allo_engine.data.shares import subject_of, within
from tests.tiny import tiny_tokenizer

SHARES = st.floats(0, 1)
TEXTS = st.text(max_size=30)


@given(TEXTS, SHARES, SHARES)
def test_a_smaller_share_lies_within_a_larger_one(text: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert not within(text, smaller) or within(text, larger)
    assert within(text, 1)
    assert not within(text, 0)


@given(TEXTS, SHARES)
def test_case_and_space_change_no_side(text: str, share: float) -> None:
    assert within(f"  {text} \n", share) == within(text, share)
    assert within("What  IS 2+2?", share) == within("what is\n2+2?", share)


def test_a_share_is_about_that_share_of_many_texts() -> None:
    for share in (0.1, 0.5, 0.9):
        found = sum(within(f"{number} + {number * 7}?", share) for number in range(10_000))
        assert abs(found / 10_000 - share) < 0.02  # four standard deviations


def test_a_text_keeps_its_side_for_good() -> None:
    """Jobs of other days must find what was split before: sha256("2 + 3?") begins with these eight bytes."""
    place = int("c1f22f18a43e028f", 16) % 10**9 / 10**9
    assert within("2 + 3?", place + 1e-8)
    assert not within("2 + 3?", place - 1e-8)


def test_sft_and_sampling_part_a_file_whatever_its_order(tmp_path: Path) -> None:
    lines = [{"problem": f"{number}?", "solution": "yes"} for number in range(60)]

    def parted(name: str, given: list[dict[str, str]]) -> tuple[set[str], set[str]]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text("\n".join(map(json.dumps, given)))
        encoder = Encoder(tiny_tokenizer(chat=False))
        learned = {encoder.decode(prompt) for prompt, _ in supervised_examples(tmp_path / name, encoder, 0.5)}
        return learned, {encoder.decode(encoder.prompt(found.problem)) for found in problems(tmp_path / name, 0.5)}

    learned, sampled = parted("file", lines)
    assert (learned & sampled, len(learned | sampled)) == (set(), 60)
    more, others = parted("longer", [*reversed(lines), *({"problem": f"new {n}", "solution": ""} for n in range(20))])
    assert (learned <= more, sampled <= others) == (True, True)


def test_a_chat_goes_by_all_of_it() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    again = {"messages": [dict(reversed(message.items())) for message in chat["messages"]], "tools": None}
    assert subject_of(chat) == subject_of(again)
    assert subject_of(chat) != subject_of({"messages": chat["messages"][:1]})
