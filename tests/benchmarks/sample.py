"""Sampling ten responses a problem: the transformers backend against HF generate, batch for batch."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from allo_engine.model.loading import load_model
from allo_engine.sampling.transformers import Request, Settings, generate
from tests.benchmarks import material
from tests.benchmarks.case import Case, transformers_version

PROBLEMS, AT_ONCE, N, LONGEST = 6, 6, 10, 40
END = 2


def given() -> tuple[PreTrainedModel, list[list[int]]]:
    return load_model(material.model()), material.chats(PROBLEMS)


def ours() -> float:
    model, prompts = given()
    requests = [Request(number, prompt, 0) for number, prompt in enumerate(prompts)]
    settings = Settings(LONGEST, (END,), N, temperature=0.7, top_p=0.95, batch_size=AT_ONCE * N)
    began = time.perf_counter()
    batches = list(generate(model, requests, settings))
    drawn = sum(len(response.ids) for batch in batches for found in batch.values() for response in found)
    return drawn / (time.perf_counter() - began)


def hf_generate() -> float:
    """The same prompts, as many at once, of like length together."""
    model, prompts = given()
    prompts.sort(key=len)
    torch.manual_seed(0)
    tokens, began = 0, time.perf_counter()
    for start in range(0, len(prompts), AT_ONCE):
        batch = prompts[start : start + AT_ONCE]
        width = max(map(len, batch))
        ids = torch.tensor([[END] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        found = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=0.7, top_p=0.95, top_k=0,
            num_return_sequences=N, max_new_tokens=LONGEST, pad_token_id=END, eos_token_id=END,
        )[:, width:]  # fmt: skip
        tokens += int((found != END).sum() + (found == END).any(1).sum())
    return tokens / (time.perf_counter() - began)


CASES = (
    Case(
        "sample, tokens/s, n = 10",
        ours,
        hf_generate,
        transformers_version("generate"),
        goal=1.5,
        higher_is_better=True,
        limit="a forward pass of 60 rows a token: 16 GFLOP",
    ),
)
