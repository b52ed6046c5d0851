"""Answers that a model gave before, to any stage on this machine, kept by (weights, prompt ids, how it was asked).

They follow from these alone: greedy ones, and those of a random stream that the request names. But in float32 only. In
16 bits they depend on what was decoded beside them, and nothing is shared, as of log-probabilities (logp_cache.py).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allo_engine.sampling.requests import Request, Response, Settings
from allo_engine.shelf import Shelf

Kept = dict[tuple[int, int], Response]
"""Responses by (request's number, sample)."""


class Known:
    """What one model answered. `model` names all that its answers follow from beside request and settings; `shared` is
    the folder that stages on a machine share."""

    def __init__(self, shared: Path, model: str, settings: Settings) -> None:
        self._shelf, self._greedy = Shelf(shared / "answers.db"), settings.temperature == 0
        drawn = () if self._greedy else (settings.temperature, settings.top_p)
        self._name = repr((model, settings.ends, *drawn))

    def read(self, requests: Sequence[Request]) -> Kept:
        """What is known of what is asked, without log-probabilities."""
        found = self._shelf.read(self._keys(requests))
        return {place: Response(np.frombuffer(ids, np.int32).tolist(), None) for place, ids in found.items()}

    def write(self, requests: Sequence[Request], found: Kept) -> None:
        keys = self._keys(requests)
        self._shelf.write({key: np.array(found[place].ids, np.int32).tobytes() for place, key in keys.items()})

    def _keys(self, requests: Sequence[Request]) -> dict[tuple[int, int], bytes]:
        return {
            (request.number, sample): self._key(request, sample) for request in requests for sample in request.samples
        }

    def _key(self, request: Request, sample: int) -> bytes:
        stream = () if self._greedy else (request.seed, request.number, sample)
        asked = repr((self._name, request.max_tokens, *stream)).encode()
        return hashlib.sha256(asked + b"/" + array("q", request.prompt).tobytes()).digest()
