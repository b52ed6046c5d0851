"""What is asked of a sampler and what it answers with: the seam behind which the backends stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Request:
    """A prompt to answer with at most `max_tokens` tokens, once for each of `samples`.

    Seed, number and sample name a response's random stream.
    """

    number: int
    prompt: Sequence[int]
    seed: int
    max_tokens: int
    samples: Sequence[int] = (0,)

    def uniforms(self, sample: int) -> np.ndarray:
        """A response's uniforms in [0, 1), float64 [max_tokens]: they depend on nothing but these three."""
        return self._stream(sample).random(self.max_tokens)

    def stream_seed(self, sample: int) -> int:
        """A response's seed where a backend draws by a generator of its own, in [0, 2^63): of the same three."""
        return int(self._stream(sample).integers(2**63))

    def _stream(self, sample: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, self.number * 65536 + sample]))


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn: temperature 0 is greedy; `ends` are the tokens that end a response.

    `rows` is how many responses are decoded at once at most.
    """

    ends: tuple[int, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    rows: int = 64


class Response(NamedTuple):
    """A response's ids, and each token's logπ under the model itself: at temperature 1, in nats.

    None where the backend's log-probabilities are no reference: the engine scores such responses when they are needed.
    """

    ids: list[int]
    logps: list[float] | None


class Finished(NamedTuple):
    """A response that has ended, with the request and the sample that it answers."""

    number: int
    sample: int
    response: Response


class Sampler(Protocol):
    """A model that answers."""

    def sample(self, requests: Sequence[Request], settings: Settings) -> Iterator[Finished]:
        """Responses as they end, in no order; each ends with one of `ends` or is its request's `max_tokens` long."""
