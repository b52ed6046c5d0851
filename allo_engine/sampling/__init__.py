"""Responses of a model: `open` gives a sampler, whichever backend it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from allo_engine.checkpoints.delta import apply_delta
from allo_engine.model.loading import load_model
from allo_engine.report import Report
from allo_engine.sampling.requests import Finished, Request, Response, Sampler, Settings
from allo_engine.sampling.transformers import TransformersSampler

__all__ = ["Finished", "Request", "Response", "Sampler", "Settings", "TransformersSampler", "open"]


@contextmanager
def open(
    folder: Path,
    delta: Path | None = None,
    dtype: torch.dtype = torch.float32,
    report: Report | None = None,
    work: Path | None = None,
) -> Iterator[Sampler]:
    """A sampler of the model in a folder, with a delta's values in it if one is given; `work` is its stage's folder.

    Raises StageError where the delta belongs to another model.
    """
    model = load_model(folder, dtype)
    if delta is not None:
        apply_delta(model, delta, folder)
    sampler = TransformersSampler(model, report, work=work)
    del model
    try:
        yield sampler
    finally:
        sampler.close()
