from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allo_engine.model.loading import load_model
from allo_engine.sampling.transformers import Request, Settings, draw, generate
from tests.tiny import tiny_model

PROMPTS = [[0, 10, 20], [0, 10, 20, 30], [0, 5], [0, 40, 41, 42, 43, 44, 45]]


def sample(batch_size: int, seed: int = 0, prompts: list[list[int]] = PROMPTS) -> dict[int, list[list[int]]]:
    requests = [Request(number, prompt, seed) for number, prompt in enumerate(prompts)]
    plan = Settings(max_tokens=12, ends=(1,), n=3, temperature=1.0, top_p=0.9, batch_size=batch_size)
    found: dict[int, list[list[int]]] = {}
    for batch in generate(tiny_model(), requests, plan):
        found |= {number: [response.ids for response in drawn] for number, drawn in batch.items()}
    return found


def test_what_a_request_gets_does_not_depend_on_its_batch() -> None:
    assert sample(batch_size=1) == sample(batch_size=64)
    assert sample(batch_size=64)[1] == sample(batch_size=64, prompts=[[0, 99], PROMPTS[1]])[1]


def test_the_kept_log_probabilities_are_those_of_a_plain_forward_pass() -> None:
    model = tiny_model()
    requests = [Request(number, prompt, 0) for number, prompt in enumerate(PROMPTS)]
    plan = Settings(max_tokens=12, ends=(1,), n=3, temperature=0.5, top_p=0.9, batch_size=64)
    (batch,) = generate(model, requests, plan)
    for number, drawn in batch.items():
        for response in drawn:
            logps = model(torch.tensor([PROMPTS[number] + response.ids])).logits[0].log_softmax(-1)
            places = torch.arange(len(response.ids)) + len(PROMPTS[number]) - 1
            expected = logps[places, torch.tensor(response.ids)]
            assert torch.allclose(torch.tensor(response.logps), expected, atol=1e-5)


def test_samples_of_a_problem_differ_and_follow_the_seed() -> None:
    found = sample(batch_size=64)
    assert len({tuple(ids) for ids in found[0]}) > 1
    assert found != sample(batch_size=64, seed=1)


def test_a_response_ends_at_its_first_end_token_or_at_the_limit() -> None:
    for responses in sample(batch_size=64).values():
        for ids in responses:
            assert ids.index(1) == len(ids) - 1 if 1 in ids else len(ids) == 12


def test_greedy_text_is_that_of_transformers() -> None:
    model = tiny_model()
    requests = [Request(number, prompt, 0) for number, prompt in enumerate(PROMPTS)]
    (found,) = generate(model, requests, Settings(max_tokens=10, ends=(1,)))
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        assert found[number][0].ids == expected[0, len(prompt) :].tolist()


def test_folded_heads_change_no_answer(model_folder: Path) -> None:
    requests = [Request(number, prompt, 0) for number, prompt in enumerate(PROMPTS)]
    plan = Settings(max_tokens=12, ends=(1,), n=3, temperature=1.0, top_p=0.9)
    model, plain = load_model(model_folder), tiny_model()
    assert (model.config._attn_implementation, plain.config._attn_implementation) == ("forest", "sdpa")
    (ours,), (theirs,) = generate(model, requests, plan), generate(plain, requests, plan)
    for number, drawn in theirs.items():
        assert [response.ids for response in ours[number]] == [response.ids for response in drawn]
        for one, other in zip(ours[number], drawn, strict=True):
            assert one.logps == pytest.approx(other.logps, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_draws_come_from_the_nucleus_by_its_own_distribution(seed: int, top_p: float, temperature: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 200)) * 3).float()
    probs = torch.softmax(logits / temperature, -1)[0].double()
    ordered, places = probs.sort(descending=True)
    size = min(200, int((ordered.cumsum(0) < top_p).sum()) + 1)
    nucleus = ordered[:size] / ordered[:size].sum()
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = draw(logits.expand(4000, -1), grid, temperature, top_p)
    counts = torch.bincount(drawn, minlength=200)[places].double() / 4000
    assert float(counts[size:].sum()) == 0
    assert torch.allclose(counts[:size], nucleus, atol=1.5 / 4000 + 1e-4)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_zero_temperature_takes_the_likeliest(top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert draw(logits, torch.tensor([0.9, 0.9]), 0.0, top_p).tolist() == [1, 0]
