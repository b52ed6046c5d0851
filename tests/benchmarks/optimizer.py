"""The optimizer's step: masked entries against the published form, AdamW over all weights with masked gradients."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import load_model
from tests.benchmarks import material
from tests.benchmarks.case import Case, torch_version
from tests.benchmarks.pairs import MASK, random_entries


def seconds_a_step(step: Callable[[], None], repeats: int = 5) -> float:
    step()  # the first one makes the moments
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - began) / repeats


def ours() -> float:
    model = load_model(material.model())
    sparse = SparseModel(model, random_entries(model))
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=1e-6, fused=True)
    for values in sparse.values.values():
        values.grad = torch.randn_like(values)

    def step() -> None:
        optimizer.step()
        sparse.write_back()

    return seconds_a_step(step)


def dense(fused: bool) -> float:
    """Gradients times the mask, then AdamW over all weights."""
    weights = list(load_model(material.model()).parameters())
    masks = [(torch.rand_like(p) < MASK).float() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=fused)
    for p in weights:
        p.grad = torch.randn_like(p)

    def step() -> None:
        for p, mask in zip(weights, masks, strict=True):
            assert p.grad is not None
            p.grad.mul_(mask)
        optimizer.step()

    return seconds_a_step(step)


CASES = tuple(
    Case(
        "optimizer step, s",
        ours,
        lambda fused=fused: dense(fused),  # type: ignore[misc]
        torch_version(f"dense masked AdamW, {how}"),
        goal=0.1 if not fused else 0.5,
        higher_is_better=False,
        limit="28 bytes moved a masked weight, at random places for the four that are written back",
    )
    for fused, how in ((False, "as published"), (True, "fused"))
)
