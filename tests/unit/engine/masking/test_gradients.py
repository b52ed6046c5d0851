"""The summed gradient of packed rows: against plain autograd over separate sequences."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from allo_engine.masking.gradients import summed_gradients
from allo_engine.model.sequences import Group
from tests.tiny import tiny_model

BETA, CPU = 0.3, torch.device("cpu")


def by_plain_autograd(model: PreTrainedModel, groups: list[Group]) -> dict[str, torch.Tensor]:
    """∇ of Σ −logσ(β(Δ − Δ_ref)) / (β/2), Δ = logπ(chosen) − logπ(rejected), a sequence at a time, the model as ref."""
    model.zero_grad()
    for group in groups:
        for chosen, rejected in group.items:
            difference = sequence_logp(model, group, chosen) - sequence_logp(model, group, rejected)
            (-logsigmoid(BETA * (difference - difference.detach())) / (BETA / 2)).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def sequence_logp(model: PreTrainedModel, group: Group, index: int) -> torch.Tensor:
    prompt, response = list(group.prompt), list(group.responses[index])
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def pair_groups() -> list[Group]:
    source = random.Random(0)
    ids = lambda low, high: [source.randrange(5, 261) for _ in range(source.randint(low, high))]  # noqa: E731
    items = [(0, 2), (1, 3), (0, 4)]
    return [Group(key, [0, *ids(2, 8)], {i: [*ids(1, 11), 1] for i in range(5)}, items) for key in range(4)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("budget", [8, 64, 4096])
def test_the_gradient_is_that_of_dpo_over_separate_sequences(tied: bool, budget: int) -> None:
    model, groups = tiny_model(tied=tied), pair_groups()
    told: list[int] = []
    found = summed_gradients(model, groups, budget, told.append, CPU)
    expected = by_plain_autograd(model, groups)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name
    assert sum(told) >= sum(group.tokens() for group in groups)


def test_the_chosen_responses_mean_nll_is_in_the_gradient_with_its_weight() -> None:
    """Of a loss with NLL of weight α and β, what stands beside β/2 weighs 2α/β."""
    alpha, model, groups = 0.3, tiny_model(), pair_groups()
    found = summed_gradients(model, groups, 64, lambda _: None, CPU, 2 * alpha / BETA)
    expected = by_plain_autograd(model, groups)
    for group in groups:
        for chosen, _ in group.items:
            nll = -sequence_logp(model, group, chosen) / len(group.responses[chosen])
            (alpha * nll / (BETA / 2)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert torch.allclose(found[name], expected[name] + weight.grad, rtol=1e-3, atol=1e-4), name


def test_16_bit_weights_are_summed_in_float32_and_no_gradient_is_left_behind() -> None:
    model = tiny_model().bfloat16()
    found = summed_gradients(model, pair_groups(), 64, lambda _: None, CPU)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(weight.grad is None for weight in model.parameters())


def test_the_model_is_left_without_hooks() -> None:
    model = tiny_model()
    summed_gradients(model, pair_groups(), 64, lambda _: None, CPU)
    model(torch.tensor([[0, 5, 6]])).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_on_the_host_are_the_bits_that_the_device_would_sum(dtype: torch.dtype) -> None:
    """What a device does, gradient by gradient in float32, with plain tensors; and what stands on the host."""
    model, groups = tiny_model().to(dtype), pair_groups()
    on_host = summed_gradients(model, groups, 64, lambda _: None, torch.device("cpu"))
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in on_host}
    for name, weight in model.named_parameters():
        weight.register_hook(lambda gradient, name=name: seen[name].append(gradient.clone()))
    summed_gradients(model, groups, 64, lambda _: None, torch.device("cpu"))
    for name, gradients in seen.items():
        assert len(gradients) > 1
        total = torch.zeros_like(gradients[0], dtype=torch.float32)
        for gradient in gradients:
            total += gradient.float()
        assert torch.equal(total, on_host[name]), name
