"""The benchmarks: each a measure, our side, and the rival's. A side returns its figure, measured in its own process."""

from __future__ import annotations

import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from allo_engine import losses
from allo_engine.config import ImproveConfig, LocateConfig
from allo_engine.delta import FILE, save_delta
from allo_engine.masks import Positions
from allo_engine.models import load_model, load_tokenizer
from allo_engine.objectives import PairObjective
from allo_engine.report import Report
from allo_engine.sampling import Request, Settings, generate
from allo_engine.sequences import Group, singles
from allo_engine.sparse import SparseModel
from allo_engine.stages import locate
from allo_engine.training import Trainer, score
from tests.benchmarks import material
from tests.benchmarks.case import Case

MASK = 0.05


# --- improve


def scored_tokens(groups: list[Group]) -> int:
    return sum(len(group.responses[index]) for group in groups for pair in group.items for index in pair)


def ours_improve(pairs: int, problems: int = 8) -> float:
    model = load_model(material.model())
    sparse = SparseModel(model, random_positions(model))
    return ours_dpo(model, sparse.values, material.pair_groups(problems, pairs), 0.1, sparse.write_back)


def ours_warmup(pairs: int, problems: int = 8) -> float:
    model = load_model(material.model())
    return ours_dpo(model, dict(model.named_parameters()), material.pair_groups(problems, pairs), 1.0)


def ours_dpo(
    model: PreTrainedModel,
    parameters: dict[str, torch.nn.Parameter],
    groups: list[Group],
    kept: float,
    written: Callable[[], None] = lambda: None,
) -> float:
    """Scored tokens a second, the reference's pass counted."""
    with tempfile.TemporaryDirectory() as work:
        config = ImproveConfig(batch_size=16)
        trainer = Trainer(model, parameters, config, Report(io.StringIO()), Path(work), written=written)
        began = time.perf_counter()
        objective = PairObjective(
            trainer.reference(groups), 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, kept)
        )
        trainer.train(groups, objective, reference=True)
        return scored_tokens(groups) / (time.perf_counter() - began)


def trl_dpo(pairs: int, precomputed: bool = False, problems: int = 8) -> float:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    groups = material.pair_groups(problems, pairs)
    tokenizer = load_tokenizer(material.model())
    text = lambda group, index: tokenizer.decode(group.responses[index][:-1])  # noqa: E731 - the trainer adds EOS
    rows = [
        {"prompt": tokenizer.decode(group.prompt), "chosen": text(group, chosen), "rejected": text(group, rejected)}
        for group in groups
        for chosen, rejected in group.items
    ]
    with tempfile.TemporaryDirectory() as work:
        config = DPOConfig(
            output_dir=work, per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=1,
            beta=0.1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
            disable_tqdm=True, logging_strategy="no", precompute_ref_log_probs=precomputed,
        )  # fmt: skip
        models = {"model": load_model(material.model()), "ref_model": load_model(material.model())}
        made = time.perf_counter()
        dataset = Dataset.from_list(rows)
        trainer = DPOTrainer(**models, args=config, train_dataset=dataset, processing_class=tokenizer)
        began = made if precomputed else time.perf_counter()  # the references are computed as the trainer is made
        trainer.train()
        return scored_tokens(groups) / (time.perf_counter() - began)


# --- token rewards


def scoring(score_all: Callable[[PreTrainedModel, list[Group]], object]) -> float:
    groups = [singles(g.key, g.prompt, list(g.responses.values())) for g in material.pair_groups(8, 5)]
    model = load_model(material.model())
    began = time.perf_counter()
    score_all(model, groups)
    return sum(len(ids) for g in groups for ids in g.responses.values()) / (time.perf_counter() - began)


def packed_scores(model: PreTrainedModel, groups: list[Group]) -> object:
    return score(model, groups, 1024, lambda _: None)


@torch.no_grad()
def one_by_one(model: PreTrainedModel, groups: list[Group]) -> object:
    """As published: a forward pass a response, logits at every position."""
    for group in groups:
        for ids in group.responses.values():
            logits = model(torch.tensor([[*group.prompt, *ids]])).logits[0, len(group.prompt) - 1 : -1]
            logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
    return None


# --- the optimizer's step


def random_positions(model: torch.nn.Module) -> Positions:
    random = np.random.default_rng(0)
    return {
        name: np.flatnonzero(random.random(p.numel(), dtype=np.float32) < MASK) for name, p in model.named_parameters()
    }


def seconds_a_step(step: Callable[[], None], repeats: int = 5) -> float:
    step()  # the first one makes the moments
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - began) / repeats


def ours_optimizer() -> float:
    model = load_model(material.model())
    sparse = SparseModel(model, random_positions(model))
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=1e-6, fused=True)
    for values in sparse.values.values():
        values.grad = torch.randn_like(values)

    def step() -> None:
        optimizer.step()
        sparse.write_back()

    return seconds_a_step(step)


def dense_optimizer() -> float:
    """The published form: AdamW over all weights, gradients multiplied by the mask, weights set back outside it."""
    model = load_model(material.model())
    weights = list(model.parameters())
    masks = [(torch.rand_like(p) < MASK).float() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    for p in weights:
        p.grad = torch.randn_like(p)

    def step() -> None:
        for p, mask in zip(weights, masks, strict=True):
            assert p.grad is not None
            p.grad.mul_(mask)
        optimizer.step()

    return seconds_a_step(step)


# --- locate


def moved_model(work: Path) -> None:
    """A second checkpoint, a small random step away from the first."""
    random = np.random.default_rng(1)
    tensors = load_file(material.model() / "model.safetensors")
    save_file(
        {n: t + 1e-6 * random.standard_normal(t.shape, dtype=np.float32) for n, t in tensors.items()},
        work / "model.safetensors",
    )


def in_moved(measure: Callable[[Path], Any]) -> float:
    with tempfile.TemporaryDirectory() as work:
        moved_model(Path(work))
        began = time.perf_counter()
        measure(Path(work))
        return time.perf_counter() - began


def ours_locate() -> float:
    model = material.model()
    return in_moved(
        lambda work: locate.run(
            LocateConfig(), {"model": model, "updated": work}, work / "out", work, Report(io.StringIO())
        )
    )


def topk_locate() -> float:
    model = material.model()

    def measure(work: Path) -> None:
        before, after = load_file(model / "model.safetensors"), load_file(work / "model.safetensors")
        update = torch.cat([torch.from_numpy(np.abs(after[name] - before[name])).flatten() for name in sorted(before)])
        mask = torch.zeros(len(update), dtype=torch.bool)
        mask[update.topk(int(len(update) * MASK)).indices] = True
        save_file({"mask": np.packbits(mask.numpy())}, work / "mask.safetensors")

    return in_moved(measure)


# --- sample


def sampling() -> tuple[Any, list[list[int]], int]:
    groups = material.pair_groups(16, 1)
    return load_model(material.model()), [list(group.prompt) for group in groups], 10


def ours_sample() -> float:
    model, prompts, n = sampling()
    requests = [Request(number, prompt, 0) for number, prompt in enumerate(prompts)]
    settings = Settings(max_tokens=48, end=2, n=n, temperature=0.7, top_p=0.95)
    began = time.perf_counter()
    tokens = sum(len(ids) for batch in generate(model, requests, settings) for found in batch.values() for ids in found)
    return tokens / (time.perf_counter() - began)


def hf_sample() -> float:
    model, prompts, n = sampling()
    torch.manual_seed(0)
    tokens, began = 0, time.perf_counter()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.7, top_p=0.95, top_k=0,
            num_return_sequences=n, max_new_tokens=48, pad_token_id=2, eos_token_id=2,
        )[:, len(prompt):]  # fmt: skip
        tokens += int((found != 2).sum() + (found == 2).any(1).sum())
    return tokens / (time.perf_counter() - began)


# --- the sparse checkpoint


def ours_delta() -> float:
    model = load_model(material.model())
    with tempfile.TemporaryDirectory() as work:
        save_delta(model, random_positions(model), "base", Path(work))
        return float((Path(work) / FILE).stat().st_size)


def bf16_checkpoint() -> float:
    return 2.0 * sum(p.numel() for p in load_model(material.model()).parameters())


# --- memory


def extra_memory(train: Callable[[], float]) -> float:
    """Peak memory of training over what the loaded model takes, bytes."""
    load_model(material.model())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train()
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def torch_version(name: str) -> Callable[[], str]:
    return lambda: f"{name}, torch {version('torch')}"


COMPUTE = f"FLOPs: forward and backward at this machine's {os.cpu_count()} cores"


def against_trl(measure: str, ours: Callable[[], float], rival: Callable[[], float], goal: float, how: str) -> Case:
    name = f"TRL {version('trl')} DPOTrainer, {how} reference"
    return Case(measure, ours, rival, lambda: name, goal, higher_is_better=True, limit=COMPUTE)


CASES: dict[str, tuple[Case, ...]] = {
    "improve": (
        against_trl("improve, tokens/s, 5 pairs", lambda: ours_improve(5), lambda: trl_dpo(5), 3.5, "live"),
        against_trl(
            "improve, tokens/s, 5 pairs", lambda: ours_improve(5), lambda: trl_dpo(5, True), 2.5, "precomputed"
        ),
        against_trl(
            "improve, tokens/s, 1 pair", lambda: ours_improve(1, 24), lambda: trl_dpo(1, False, 24), 1.8, "live"
        ),
    ),
    "warmup": (against_trl("warmup, tokens/s, 5 pairs", lambda: ours_warmup(5), lambda: trl_dpo(5), 2.5, "live"),),
    "memory": (
        Case(
            "improve, extra peak bytes over the loaded model",
            lambda: extra_memory(lambda: ours_improve(5, 4)),
            lambda: extra_memory(lambda: trl_dpo(5, False, 4)),
            lambda: f"TRL {version('trl')} DPOTrainer with AdamW",
            goal=0.25,
            higher_is_better=False,
            limit="activations of one row and its logits",
        ),
    ),
    "optimizer": (
        Case(
            "optimizer step, s",
            ours_optimizer,
            dense_optimizer,
            torch_version("dense masked AdamW"),
            goal=0.1,
            higher_is_better=False,
            limit="28 bytes moved a masked weight",
        ),
    ),
    "locate": (
        Case(
            "locate, s from stored weights to stored mask",
            ours_locate,
            topk_locate,
            torch_version("concatenate + topk"),
            goal=0.125,
            higher_is_better=False,
            limit="two checkpoints, read three times",
        ),
    ),
    "token-rewards": (
        Case(
            "token_rewards, scored tokens/s",
            lambda: scoring(packed_scores),
            lambda: scoring(one_by_one),
            torch_version("one response at a time"),
            goal=3.0,
            higher_is_better=True,
            limit=COMPUTE,
        ),
    ),
    "sample": (
        Case(
            "sample, tokens/s, n = 10",
            ours_sample,
            hf_sample,
            lambda: f"generate, transformers {version('transformers')}",
            goal=1.5,
            higher_is_better=True,
            limit="a forward pass a token",
        ),
    ),
    "delta": (
        Case(
            "sparse checkpoint, bytes",
            ours_delta,
            bf16_checkpoint,
            lambda: "bf16 safetensors",
            goal=0.08,
            higher_is_better=False,
            limit="a mask of 5 % holds 0.29 bits a weight",
        ),
    ),
}
