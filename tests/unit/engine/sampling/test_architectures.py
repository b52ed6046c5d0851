"""Every kind of model answers as it does alone: greedy texts are those of transformers' `generate`, one by one."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from allo_engine.sampling import Request, Response, Settings, TransformersSampler
from tests.architectures import ARCHITECTURES, PACKED, random_model

OWN_ATTENTION = {"Gemma 2", "GPT-OSS"}
"""In place under the engine's attention, which `generate` has not; under transformers' own, in their own cache."""

PROMPTS = [[3, 10, 20], [3, 10, 20, 30, 40, 50, 60, 70, 80], [5], [9, 8, 7], [3, 40, 41, 42, 43, 44, 45, 46]]


def answers(sampler: TransformersSampler, plan: Settings, n: int = 1) -> dict[tuple[int, int], Response]:
    requests = [Request(number, prompt, 0, 12, range(n)) for number, prompt in enumerate(PROMPTS)]
    return {(number, sample): response for number, sample, response in sampler.sample(requests, plan)}


def generated(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return list(map(int, found[0, len(prompt) :]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_texts_are_those_of_generate(name: str) -> None:
    model = random_model(name)
    expected = [generated(model, prompt) for prompt in PROMPTS]
    sampler = TransformersSampler(model)
    assert sampler.in_place == (name in PACKED.keys() - OWN_ATTENTION)
    found = answers(sampler, Settings((1,), rows=3))
    assert [found[number, 0].ids for number in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampled_log_probabilities_are_those_of_a_plain_forward(name: str) -> None:
    model, plain = random_model(name), random_model(name)
    for (number, _), (ids, logps) in answers(TransformersSampler(model), Settings((1,), 1.0, 0.9, 4), n=3).items():
        prompt = PROMPTS[number]
        expected = plain(torch.tensor([prompt + ids]), use_cache=False).logits[0].log_softmax(-1)
        places = torch.arange(len(ids)) + len(prompt) - 1
        assert torch.allclose(torch.tensor(logps), expected[places, torch.tensor(ids)], atol=1e-4)
