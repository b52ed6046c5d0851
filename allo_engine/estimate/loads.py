"""What a stage computes, in counts that its settings and data alone decide: rows, tokens, steps, bytes.

The rows are those that the stage itself would pack, the batches of decoding those that it would decode.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from allo_engine.model.attention import attended
from allo_engine.model.memory import Kind
from allo_engine.model.sequences import Group, build_row

COMPACT_BELOW = 0.75
"""Decoding takes out the rows that ended when fewer than this share still run (see sampling.py)."""


@dataclass(frozen=True)
class Passes:
    """Rows through the model: their tokens, the pairs attended, the positions scored, and the longest of them."""

    tokens: float = 0.0
    attended: float = 0.0
    scored: float = 0.0
    rows: float = 0.0
    longest: int = 0

    def plus(self, other: Passes) -> Passes:
        return Passes(
            self.tokens + other.tokens,
            self.attended + other.attended,
            self.scored + other.scored,
            self.rows + other.rows,
            max(self.longest, other.longest),
        )

    def times(self, factor: float) -> Passes:
        return Passes(
            self.tokens * factor, self.attended * factor, self.scored * factor, self.rows * factor, self.longest
        )


def passes(rows: Iterable[list[Group]]) -> Passes:
    """What rows of groups are, packed as the stages pack them."""
    total = Passes()
    for groups in rows:
        row = build_row(groups)
        length = row.ids.numel()
        total = total.plus(Passes(length, attended(row.ends), len(row.targets), 1, length))
    return total


@dataclass(frozen=True)
class Decoding:
    """Batches of responses decoded: prompts as they are padded, steps, rows of all steps, cached tokens that they read,
    and what is decoded. `widest` is the most tokens that a batch holds in its cache.
    """

    prompts: Passes = Passes()
    steps: float = 0.0
    row_steps: float = 0.0
    cached: float = 0.0
    decoded: float = 0.0
    widest: int = 0

    def plus(self, other: Decoding) -> Decoding:
        return Decoding(
            self.prompts.plus(other.prompts),
            self.steps + other.steps,
            self.row_steps + other.row_steps,
            self.cached + other.cached,
            self.decoded + other.decoded,
            max(self.widest, other.widest),
        )

    def times(self, factor: float) -> Decoding:
        return Decoding(
            self.prompts.times(factor),
            self.steps * factor,
            self.row_steps * factor,
            self.cached * factor,
            self.decoded * factor,
            self.widest,
        )


def decoding(prompts: Sequence[int], lengths: Sequence[Sequence[int]], batch: int) -> Decoding:
    """What `sampling.generate` does with prompts and the lengths of their responses: batches of like prompts, padded to
    the longest, rows that leave when enough of them have ended.
    """
    n = len(lengths[0])
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    size = max(1, batch // n)
    total = Decoding()
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        width = max(prompts[place] for place in chosen)
        total = total.plus(_batch(width, len(chosen), sorted(length for place in chosen for length in lengths[place])))
    return total


def _batch(width: int, count: int, lengths: Sequence[int]) -> Decoding:
    """One batch, `lengths` ascending. The first tokens come with the prompts, each further one with a step."""
    rows, row_steps, cached = len(lengths), 0, 0
    for step in range(1, lengths[-1]):
        running = len(lengths) - bisect_right(lengths, step)
        if running < COMPACT_BELOW * rows:
            rows = running
        row_steps += rows
        cached += rows * (width + step)
    tokens = width * count
    prompts = Passes(tokens, tokens * width, count, 1, tokens)
    widest = len(lengths) * (width + lengths[-1])
    return Decoding(prompts, lengths[-1] - 1, row_steps, cached, sum(lengths), widest)


@dataclass(frozen=True)
class Load:
    """What a stage computes, reads and writes. `kind` and `ratio` say what it trains; `updates` its optimizer's steps;
    `models` the checkpoints it loads, `checkpoints` those it writes.
    """

    stage: str
    kind: Kind = "forward"
    ratio: float = 1.0
    forward: tuple[Passes, ...] = ()
    training: Passes = Passes()
    decoding: Decoding = Decoding()
    updates: float = 0.0
    judged: float = 0.0
    streamed: bool = False
    models: int = 1
    checkpoints: int = 0
    deltas: int = 0
    masks: int = 0
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = 60.0
    weight_bytes: int = 4

    def tokens(self) -> int:
        """Tokens of all passes and of all that is decoded."""
        rows = self.training.tokens + sum(found.tokens for found in self.forward)
        return round(rows + self.decoding.prompts.tokens + self.decoding.decoded)
