"""The vLLM backend beside our own decoding and HF generate: the same weights, prompts, lengths and settings.

What is measured begins when the engine has loaded the model and answered its canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import packages_distributions, version

import torch

from allo_engine.model.loading import load_model
from allo_engine.sampling import Request, VllmSampler
from tests.benchmarks import material, sample
from tests.benchmarks.case import Case, transformers_version


def vllm() -> float:
    return _rate(sample.of_problems(material.chats(sample.PROBLEMS)), (sample.END,))


def vllm_with_a_runaway() -> float:
    return _rate(sample.of_lengths(material.chats(sample.RUNAWAY_PROBLEMS), sample.RUNAWAY), ())


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

CASES = (
    Case("vllm, tokens/s, n = 10", vllm, sample.ours, our_own, 1, True, LIMIT),
    Case("vllm, tokens/s, n = 10", vllm, sample.hf_generate, transformers_version("generate"), 2.5, True, LIMIT),
    Case(
        "vllm, tokens/s, one response of 100 runs to 1,024 tokens",
        vllm_with_a_runaway,
        lambda: sample.ours_of_lengths(sample.RUNAWAY),
        our_own,
        1,
        True,
        LIMIT,
    ),
    Case(
        "vllm, tokens/s, one response of 100 runs to 1,024 tokens",
        vllm_with_a_runaway,
        lambda: sample.hf_generate_of_lengths(sample.RUNAWAY),
        transformers_version("generate"),
        5,
        True,
        LIMIT,
    ),
)
