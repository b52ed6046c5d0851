"""What the stages of a job compute, in counts: rows, tokens, steps, bytes. Free of torch.

A stage's settings and data decide them, and the kind of worker that it runs on: how much memory makes how long a row,
in which precision it computes, whether vLLM decodes there. That is a `Place`. How fast the worker is decides nothing of
it: work that is counted once is priced for every worker of a kind, whatever its rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from allo_engine.bases import Backend, Moments, Precision
from allo_engine.model.memory import CONTEXT_BYTES_ELSEWHERE, Kind
from allo_engine.model.shape import Shape
from allo_engine.needs import PROCESS_BYTES

_QUARTER = 2**28


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


@dataclass(frozen=True)
class Decoding:
    """Responses decoded: prompts as they are padded, steps, rows of all steps, cached tokens that they read, and what
    is decoded. At most `rows` rows, of at most `length` tokens, are decoded at once.
    """

    prompts: Passes = Passes()
    steps: float = 0.0
    row_steps: float = 0.0
    cached: float = 0.0
    decoded: float = 0.0
    rows: int = 0
    length: int = 0

    def plus(self, other: Decoding) -> Decoding:
        return Decoding(
            self.prompts.plus(other.prompts),
            self.steps + other.steps,
            self.row_steps + other.row_steps,
            self.cached + other.cached,
            self.decoded + other.decoded,
            max(self.rows, other.rows),
            max(self.length, other.length),
        )

    def times(self, factor: float) -> Decoding:
        return Decoding(
            self.prompts.times(factor),
            self.steps * factor,
            self.row_steps * factor,
            self.cached * factor,
            self.decoded * factor,
            self.rows,
            self.length,
        )


@dataclass(frozen=True)
class Load:
    """What a stage computes, reads and writes. `kind` and `ratio` say what it trains; `updates` its optimizer's steps;
    `models` the checkpoints it loads, `checkpoints` those it writes. `judging` are passes of the rewriter. A teacher
    is `asked` so many times, one question after another, and writes so many tokens in all of them. `by_trl` says that
    TRL trains it, `keeps` that its best values are kept beside its checkpoints, `averages` of how many of the last ones
    it takes the mean, `served` that vLLM decodes.
    """

    stage: str
    kind: Kind = "forward"
    ratio: float = 1.0
    forward: tuple[Passes, ...] = ()
    judging: Passes = Passes()
    training: Passes = Passes()
    decoding: Decoding = Decoding()
    updates: float = 0.0
    judged: float = 0.0
    asked: float = 0.0
    written: float = 0.0
    streamed: bool = False
    models: int = 1
    checkpoints: int = 0
    deltas: int = 0
    masks: int = 0
    gradient_checkpointing: bool = False
    moments: Moments = "float32"
    checkpoint_seconds: float = 60.0
    weight_bytes: int = 4
    by_trl: bool = False
    keeps: bool = False
    averages: int = 0
    served: bool = False

    def tokens(self) -> int:
        """Tokens of all passes and of all that is decoded."""
        rows = self.training.tokens + self.judging.tokens + sum(found.tokens for found in self.forward)
        return round(rows + self.decoding.prompts.tokens + self.decoding.decoded)


@dataclass(frozen=True)
class Place:
    """A kind of worker, as far as it decides what a stage computes there: the type of its device, the memory that a
    stage finds free on it, and whether it computes in bfloat16 and has vLLM.
    """

    device: str
    free_bytes: int
    bfloat16: bool = False
    vllm: bool = False

    @classmethod
    def of(cls, device: str, all_bytes: int, bfloat16: bool, vllm: bool) -> Place:
        """Where so much memory is a stage's own: free of it is what its process does not take. In whole quarters of a
        GiB, so that machines of about the same memory are of one kind.
        """
        taken = CONTEXT_BYTES_ELSEWHERE if device == "cuda" else PROCESS_BYTES
        return cls(device, max(1, (all_bytes - taken) // _QUARTER) * _QUARTER, bfloat16, vllm)

    def weight_bytes(self, precision: Precision) -> int:
        """Of a weight in the precision that is computed in (see model/loading.py)."""
        narrow = self.device == "cuda" and self.bfloat16
        return 2 if precision == "bfloat16" or (precision == "auto" and narrow) else 4

    def serves(self, backend: Backend) -> bool:
        """Whether vLLM decodes (see sampling/)."""
        return backend == "vllm" or (backend == "auto" and self.vllm and self.device == "cuda")


@dataclass(frozen=True)
class Work:
    """A job that was counted for one kind of worker: the shapes of the model that it aligns and of the one that becomes
    the rewriter, and each stage's load, in running order, under every view of what models will answer (priors.py): the
    expected one first.
    """

    place: Place
    model: Shape
    rewriter: Shape
    views: tuple[tuple[Load, ...], ...]

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Work:
        """As `write` wrote it. Raises ValueError where it did not."""
        return _WORK.validate_python(written)

    def write(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = _WORK.dump_python(self, mode="json")
        return found


_WORK = TypeAdapter(Work)
