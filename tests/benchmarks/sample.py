"""Sampling ten responses a problem: the transformers backend against HF generate, on the same prompts and ends.

With random weights or real ones, two samplers do not draw the same lengths. Where a length is given, both sides end the
response at it: ours by the request's own limit, theirs by a stopping criterion on the row and the position.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from allo_engine.model.loading import device, load_model
from allo_engine.sampling import Request, Sampler, Settings, TransformersSampler
from tests.benchmarks import material
from tests.benchmarks.case import Case, transformers_version

PROBLEMS, AT_ONCE, N, LONGEST = 6, 6, 10, 40
END = 2

RUNAWAY_PROBLEMS, RUNAWAY = 10, 1024
"""A hundred responses, of which one runs to so many tokens."""


def given(count: int) -> tuple[PreTrainedModel, list[list[int]]]:
    return load_model(material.model()), material.chats(count)


def ours() -> float:
    model, prompts = given(PROBLEMS)
    return rate(TransformersSampler(model), of_problems(prompts), (END,))


def of_problems(prompts: Sequence[Sequence[int]]) -> list[Request]:
    return [Request(number, prompt, 0, LONGEST, range(N)) for number, prompt in enumerate(prompts)]


def rate(sampler: Sampler, requests: Sequence[Request], ends: tuple[int, ...], rows: int = AT_ONCE * N) -> float:
    """Tokens a second, once the sampler is there."""
    settings = Settings(ends, temperature=0.7, top_p=0.95, rows=rows)
    list(sampler.sample([replace(request, samples=()) for request in requests], settings))
    began = time.perf_counter()
    drawn = sum(len(found.response.ids) for found in sampler.sample(requests, settings))
    return drawn / (time.perf_counter() - began)


def hf_generate() -> float:
    """The same prompts, as many at once, of like length together."""
    return generating(*given(PROBLEMS))


def generating(model: PreTrainedModel, prompts: Sequence[Sequence[int]], at_once: int = AT_ONCE) -> float:
    torch.manual_seed(0)
    tokens, began = 0, time.perf_counter()
    for ids, mask, _ in batches(prompts, at_once):
        found = generated(model, ids, mask, LONGEST, eos_token_id=END)
        tokens += int((found != END).sum() + (found == END).any(1).sum())
    return tokens / (time.perf_counter() - began)


def given_lengths(runs_to: int | None) -> list[list[int]]:
    """ECQA's explanations, a row a problem; the last response runs away, if it shall."""
    source = random.Random(0)
    deciles = material.RESPONSE_TOKENS
    lengths = [
        [source.randint(deciles[tenth], deciles[tenth + 1]) for tenth in range(N)] for _ in range(RUNAWAY_PROBLEMS)
    ]
    lengths[-1][-1] = runs_to or lengths[-1][-1]
    return lengths


def ours_of_lengths(runs_to: int | None) -> float:
    model, prompts = given(RUNAWAY_PROBLEMS)
    return rate(TransformersSampler(model), of_lengths(prompts, runs_to), ())


def of_lengths(prompts: Sequence[Sequence[int]], runs_to: int | None) -> list[Request]:
    """Every response is a request of its own, as each has its own limit: its prompt is read N times, not once."""
    lengths = [length for of_problem in given_lengths(runs_to) for length in of_problem]
    return [Request(place, prompts[place // N], 0, length) for place, length in enumerate(lengths)]


class Ends(StoppingCriteria):
    """A row has ended when its response is as long as was given."""

    def __init__(self, prompt: int, lengths: Sequence[int]) -> None:
        self._stops = prompt + torch.tensor(lengths, device=device())

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return self._stops <= input_ids.shape[1]


def hf_generate_of_lengths(runs_to: int | None) -> float:
    """The same prompts and lengths. A batch runs until its last row has ended, as `generate` does."""
    model, prompts = given(RUNAWAY_PROBLEMS)
    torch.manual_seed(0)
    lengths = given_lengths(runs_to)
    longest = max(map(max, lengths))
    began = time.perf_counter()
    for ids, mask, chosen in batches(prompts):
        ends = Ends(ids.shape[1], [length for place in chosen for length in lengths[place]])
        generated(model, ids, mask, longest, stopping_criteria=StoppingCriteriaList([ends]), eos_token_id=None)
    return sum(map(sum, lengths)) / (time.perf_counter() - began)


def batches(prompts: Sequence[Sequence[int]], at_once: int = AT_ONCE) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Prompts of like length, padded on the left, with their mask and their places."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        width = max(len(prompts[place]) for place in chosen)
        room = [width - len(prompts[place]) for place in chosen]
        ids = [[END] * left + list(prompts[place]) for left, place in zip(room, chosen, strict=True)]
        mask = [[0] * left + [1] * (width - left) for left in room]
        yield torch.tensor(ids), torch.tensor(mask), chosen


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, longest: int, **how: object) -> Tensor:
    found: Tensor = model.generate(
        ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True, temperature=0.7, top_p=0.95,
        top_k=0, num_return_sequences=N, max_new_tokens=longest, pad_token_id=END, **how,
    )  # fmt: skip
    return found[:, ids.shape[1] :]


CASES = (
    Case(
        "sample, tokens/s, n = 10",
        ours,
        hf_generate,
        transformers_version("generate"),
        goal=2.5,
        higher_is_better=True,
        limit="a forward pass of 60 rows a token: 16 GFLOP",
    ),
    Case(
        "sample, tokens/s, lengths of ECQA's explanations (12 to 169 tokens)",
        lambda: ours_of_lengths(None),
        lambda: hf_generate_of_lengths(None),
        transformers_version("generate"),
        goal=2.5,
        higher_is_better=True,
        limit="a forward pass of 60 rows a token, for ours; for theirs until a batch's longest row has ended",
    ),
    Case(
        "sample, tokens/s, one response of 100 runs to 1,024 tokens",
        lambda: ours_of_lengths(RUNAWAY),
        lambda: hf_generate_of_lengths(RUNAWAY),
        transformers_version("generate"),
        goal=5,
        higher_is_better=True,
        limit="a forward pass of 60 rows a token, then one row's: the weights read once a token",
    ),
)
