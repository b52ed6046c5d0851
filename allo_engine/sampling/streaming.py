"""One request's responses a token at a time, for somebody who reads along: those that the sampler would give."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from allo_engine.sampling.batch import Batch, Row
from allo_engine.sampling.caches import InPlace, Own, Rows
from allo_engine.sampling.requests import Request, Settings


class Stream:
    """Responses on their way, one for each of the request's samples. Between two steps the model may be another, as
    long as it is this one at each step. `in_place` says that the model's rows can be decoded so (probe.py)."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, request: Request, settings: Settings, in_place: bool) -> None:
        count, length = len(request.samples), len(request.prompt) + request.max_tokens - 1
        kept: Rows = InPlace(model, count, length) if in_place else Own(model)
        self._batch = Batch(kept, settings, count, request.max_tokens, model.device)
        kept.read([request.prompt])
        self._batch.admit([0] * count, [(request, sample) for sample in request.samples])

    @property
    def ended(self) -> bool:
        return not self._batch.running

    def step(self) -> list[Row]:
        """Draw each response's next token; those that were on their way, as they are now. One that should end here is
        to be `cut`."""
        self._batch.compact()
        rows = list(self._batch.running)
        if rows:
            self._batch.step()
        return rows
