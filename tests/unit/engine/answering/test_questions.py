"""Answers as somebody reads along: the sampler's own text, piece by piece, whichever other models answer meanwhile."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from allo_engine import sampling
from allo_engine.answering.own import OwnAnswerer
from allo_engine.answering.questions import Answerer, Question
from allo_engine.answering.texts import Text
from allo_engine.checkpoints.delta import merge, write_delta
from allo_engine.data.prompts import Encoder
from allo_engine.sampling import Request, Settings
from tests.tiny import save_tiny
from tests.unit.engine.checkpoints.test_delta import some_values

HELLO = [{"role": "user", "content": "Hello!"}]
ASKED = Question("q", None, HELLO, None, 24, 100, 0.0, 1.0, 1, 0, [])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def delta(base: Path) -> Path:
    write_delta(some_values(base, share=0.3), base, base.parent / "delta")
    return base.parent / "delta"


@pytest.fixture(scope="module")
def answerer(base: Path) -> Answerer:
    return OwnAnswerer(base)


def answers(answerer: Answerer, *questions: Question) -> dict[str, list[dict[str, Any]]]:
    """Every question's lines."""
    lines = [line for question in questions for line in answerer.ask(question)]
    while not answerer.idle:
        lines += answerer.turns()
    found = defaultdict(list)
    for line in lines:
        found[line["id"]].append(line)
    return found


def texts(lines: list[dict[str, Any]]) -> list[str]:
    told = defaultdict(str)
    for line in lines:
        if line["type"] == "text":
            told[line["sample"]] += line["text"]
    return [
        told[line["sample"]] for line in sorted((o for o in lines if o["type"] == "end"), key=lambda o: o["sample"])
    ]


def generated(folder: Path, tokens: int) -> str:
    encoder, model = Encoder.of(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = encoder.prompt(HELLO)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return encoder.decode(ids[0, len(prompt) :].tolist())


def test_several_models_answer_in_turns_each_as_it_does_alone(
    base: Path, delta: Path, answerer: Answerer, tmp_path: Path
) -> None:
    merge(base, delta, tmp_path / "merged")
    sparse = replace(ASKED, id="sparse", delta=str(delta), max_tokens=60)
    found = answers(answerer, replace(ASKED, max_tokens=60), sparse)
    assert texts(found["q"]) == [generated(base, 60)]
    assert texts(found["sparse"]) == [generated(tmp_path / "merged", 60)]
    assert texts(found["q"]) != texts(found["sparse"])


def test_samples_are_those_that_the_sampler_draws(base: Path, answerer: Answerer) -> None:
    lines = answers(answerer, replace(ASKED, temperature=0.9, top_p=0.8, n=3, seed=5))["q"]
    encoder = Encoder.of(base)
    request = Request(0, encoder.prompt(HELLO), 5, 24, range(3))
    with sampling.open(base) as sampler:
        drawn = {
            found.sample: found.response.ids for found in sampler.sample([request], Settings(encoder.ends, 0.9, 0.8))
        }
    assert texts(lines) == [encoder.decode(drawn[sample]) for sample in range(3)]
    assert [line["tokens"] for line in sorted_ends(lines)] == [len(drawn[sample]) for sample in range(3)]
    assert lines[0] == {"id": "q", "type": "began", "prompt_tokens": len(request.prompt)}
    assert lines[-1] == {"id": "q", "type": "done"}


def sorted_ends(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((line for line in lines if line["type"] == "end"), key=lambda line: line["sample"])


def test_a_stop_ends_the_answer_before_itself(answerer: Answerer) -> None:
    (whole,) = texts(answers(answerer, ASKED)["q"])
    lines = answers(answerer, replace(ASKED, stop=[whole[5:8], "never said"]))["q"]
    assert texts(lines) == [whole[: whole.index(whole[5:8])]]
    (end,) = sorted_ends(lines)
    assert end["reason"] == "stop"
    assert end["tokens"] < 24


def test_what_has_no_room_is_refused_and_without_a_limit_the_room_is_the_limit(answerer: Answerer) -> None:
    (refused,) = answers(answerer, replace(ASKED, max_tokens=510))["q"]
    assert (refused["type"], refused["code"]) == ("error", "context_length_exceeded")
    (end,) = sorted_ends(answers(answerer, replace(ASKED, max_tokens=None, most=7))["q"])
    assert (end["tokens"], end["reason"]) == (7, "length")


def test_one_that_nobody_waits_for_is_answered_no_further(answerer: Answerer) -> None:
    assert [line["type"] for line in answerer.ask(ASKED)] == ["began"]
    answerer.forget("q")
    assert answerer.idle
    assert list(answerer.turns()) == []


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.data())
def test_pieces_of_a_text_are_the_text_up_to_its_first_stop(whole: str, stops: list[str], data: st.DataObject) -> None:
    """Tokens are bytes: what is no whole character yet is held back."""
    ids = list(whole.encode())
    text = Text(lambda found: bytes(found).decode(errors="replace"), stops)
    told = ""
    for count in range(1, len(ids) + 1):
        if not text.stopped and data.draw(st.booleans()):
            told += text.grown(ids[:count], ended=False)
    if not text.stopped:
        told += text.grown(ids, ended=True)
    assert told == whole[: min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))]
