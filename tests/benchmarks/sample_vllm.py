"""The vLLM backend beside our own decoding and HF generate: the same weights, prompts, lengths and settings.

What is measured begins when the engine has loaded the model and answered its canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import packages_distributions, version

import torch

from allo_engine.model.loading import load_model
from allo_engine.sampling import Request, VllmSampler
from tests.benchmarks import material, sample
from tests.benchmarks.case import Case, transformers_version


def vllm() -> float:
    return _rate(sample.of_problems(material.chats(sample.PROBLEMS)), (sample.END,))


def vllm_of_lengths(runs_to: int | None) -> float:
    return _rate(sample.of_lengths(material.chats(sample.RUNAWAY_PROBLEMS), runs_to), ())


def _rate(requests: Sequence[Request], ends: tuple[int, ...]) -> float:
    sampler = VllmSampler(material.model(), torch.float32, lambda: load_model(material.model()))
    try:
        return sample.rate(sampler, requests, ends)
    finally:
        sampler.close()


def our_own() -> str:
    (distribution,) = packages_distributions()["vllm"]
    return f"our own decoding; ours is {distribution} {version(distribution)}"


LIMIT = "a forward pass of 60 rows a token: 16 GFLOP"
LENGTHS = {
    None: "vllm, tokens/s, lengths of ECQA's explanations (12 to 169 tokens)",
    sample.RUNAWAY: "vllm, tokens/s, one response of 100 runs to 1,024 tokens",
}


def of_lengths(runs_to: int | None, goal: float) -> tuple[Case, Case]:
    """Against our own decoding, and against `generate`."""
    measure, ours = LENGTHS[runs_to], partial(vllm_of_lengths, runs_to)
    own, rival = partial(sample.ours_of_lengths, runs_to), partial(sample.hf_generate_of_lengths, runs_to)
    return (
        Case(measure, ours, own, our_own, 1, True, LIMIT),
        Case(measure, ours, rival, transformers_version("generate"), goal, True, LIMIT),
    )


CASES = (
    Case("vllm, tokens/s, n = 10", vllm, sample.ours, our_own, 1, True, LIMIT),
    Case("vllm, tokens/s, n = 10", vllm, sample.hf_generate, transformers_version("generate"), 2.5, True, LIMIT),
    *of_lengths(sample.RUNAWAY, goal=5),
    *of_lengths(None, goal=2.5),
)
