"""The names of a job's stages where it aligns in rounds: `improve` is the first round's, `improve-2` the second's.

A name is its stage's kind, which says what is run, and the number of its round. It stands in paths, URLs and the Hub's
revisions as it is. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

TITLES = {
    "base": "base",
    "sft": "SFT",
    "warmup": "vanilla DPO (the warm-up)",
    "forget": "forgotten",
    "improve": "aligned",
}
"""The models of a report, for people."""


def named(kind: str, number: int) -> str:
    """The name of a round's stage."""
    return kind if number == 1 else f"{kind}-{number}"


def kind_of(name: str) -> str:
    return name.partition("-")[0]


def round_of(name: str) -> int:
    return int(name.partition("-")[2] or 1)


def title_of(model: str, titles: Mapping[str, str] = TITLES) -> str:
    """What a model of the report is, for people."""
    kind, number = kind_of(model), round_of(model)
    return titles.get(kind, kind) + (f", round {number}" if number > 1 else "")


def seed_of(seed: int, number: int) -> int:
    """A round's seed: the job's own in the first, and in a later one another, so that its samples are fresh."""
    if number == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4]) >> 1
