"""Responses of a model: `open` gives a sampler, whichever backend it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from allo_engine.bases import Backend
from allo_engine.checkpoints.delta import apply_delta
from allo_engine.model.loading import device, load_model
from allo_engine.report import Report, StageError
from allo_engine.sampling.requests import Finished, Request, Response, Sampler, Settings
from allo_engine.sampling.transformers import TransformersSampler
from allo_engine.sampling.vllm import VllmSampler, merged_folder

__all__ = [
    "Finished",
    "Request",
    "Response",
    "Sampler",
    "Settings",
    "TransformersSampler",
    "VllmSampler",
    "WhereServed",
    "chosen",
    "open",
]


@contextmanager
def open(
    folder: Path,
    delta: Path | None = None,
    dtype: torch.dtype = torch.float32,
    report: Report | None = None,
    work: Path | None = None,
    backend: Backend = "transformers",
) -> Iterator[Sampler]:
    """A sampler of the model in a folder, with a delta's values in it if one is given; `work` is its stage's folder.

    Raises StageError where the delta belongs to another model, or where the backend is not installed.
    """

    def load() -> PreTrainedModel:
        model = load_model(folder, dtype)
        if delta is not None:
            apply_delta(model, delta, folder)
        return model

    def own() -> TransformersSampler:
        sampler = TransformersSampler(load(), report, work=work)
        opened.callback(sampler.close)
        return sampler

    with ExitStack() as opened:
        if chosen(backend) == "transformers":
            yield own()
        else:
            served = opened.enter_context(merged_folder(folder, delta, dtype, work))
            sampler = VllmSampler(served, dtype, load, report)
            opened.callback(sampler.close)
            yield sampler if backend == "vllm" else WhereServed(sampler, own, report)


def chosen(backend: Backend) -> Backend:
    """What "auto" means here. Raises StageError where vLLM is asked for and not installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise StageError(
            "backend_missing",
            "This worker has no vLLM: install allo's extra 'scale' there, or set backend to 'transformers'.",
        )
    if backend == "auto":
        return "vllm" if installed and device().type == "cuda" else "transformers"
    return backend


class WhereServed:
    """vLLM's answers, or our own decoding's where vLLM cannot serve the model."""

    def __init__(self, vllm: VllmSampler, own: Callable[[], Sampler], report: Report | None) -> None:
        self._vllm, self._own, self._report = vllm, own, report

    def sample(self, requests: Sequence[Request], settings: Settings) -> Iterator[Finished]:
        try:
            yield from self._vllm.sample(requests, settings)
        except StageError as error:
            if error.code != "not_served":  # which it says before it answers anything
                raise
            if self._report:
                self._report.message(f"Decoding by transformers: {error.message}", "warn")
            yield from self._own().sample(requests, settings)
