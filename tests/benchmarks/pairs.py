"""Training on pairs: `improve` in a mask and `warmup` in all weights, against TRL's DPOTrainer; speed and memory."""

from __future__ import annotations

import gc
import io
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from allo_engine.checkpoints.delta import Values
from allo_engine.config import ImproveConfig
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import device, dtype_of, load_model
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.rows import LONGEST_ROW, LONGEST_ROW_ELSEWHERE, RowBudget
from allo_engine.model.sequences import Group, singles
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import Report
from allo_engine.training import losses
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import PairObjective
from tests.benchmarks import material
from tests.benchmarks.case import COMPUTE, Case

MASK = 0.05
LONGEST = LONGEST_ROW.get(device().type, LONGEST_ROW_ELSEWHERE)
MEBI = 1 << 20


def random_entries(model: PreTrainedModel) -> Values:
    """A random mask's positions, with the values that the model has there."""
    random = torch.Generator(model.device).manual_seed(0)
    found = {}
    for name, weight in model.named_parameters():
        drawn = torch.rand(weight.numel(), generator=random, device=weight.device)
        positions = (drawn < MASK).nonzero()[:, 0]
        found[name] = positions.cpu().numpy(), weight.detach().flatten()[positions].float().cpu().numpy()
    return found


def scored_tokens(groups: list[Group]) -> int:
    return sum(len(group.responses[index]) for group in groups for pair in group.items for index in pair)


def ours_improve(pairs: int, problems: int) -> float:
    model = load_model(material.model(), dtype_of("auto"))
    sparse = SparseModel(model, random_entries(model))
    return ours_dpo(model, sparse.values, material.pair_groups(problems, pairs), 0.1, sparse.write_back)


def ours_warmup(pairs: int, problems: int) -> float:
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
        config, report, folder = ImproveConfig(batch_size=16), Report(io.StringIO()), Path(work)
        trainer = Trainer(
            model, parameters, config, report, folder, RowBudget(LONGEST, folder, report), written=written
        )
        began = time.perf_counter()
        reference = trainer.reference(groups, LogpCache(folder, folder, "start", "auto"))
        objective = PairObjective(
            reference, 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, kept)
        )
        trainer.train(groups, objective)
        return scored_tokens(groups) / (time.perf_counter() - began)


def plain_model() -> PreTrainedModel:
    """The model as plain transformers loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(material.model(), dtype=torch.float32)


def trl_dpo(pairs: int, problems: int, precomputed: bool = False, at_once: int = 4) -> float:
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
            output_dir=work, per_device_train_batch_size=at_once, gradient_accumulation_steps=16 // at_once,
            num_train_epochs=1, beta=0.1, report_to=[], use_cpu=device().type == "cpu",
            bf16=dtype_of("auto") == torch.bfloat16, gradient_checkpointing=False, save_strategy="no",
            disable_tqdm=True, logging_strategy="no", precompute_ref_log_probs=precomputed,
        )  # fmt: skip
        models = {"model": plain_model(), "ref_model": plain_model()}
        made = time.perf_counter()
        dataset = Dataset.from_list(rows)
        trainer = DPOTrainer(**models, args=config, train_dataset=dataset, processing_class=tokenizer)
        began = made if precomputed else time.perf_counter()  # the references are computed as the trainer is made
        trainer.train()
        return scored_tokens(groups) / (time.perf_counter() - began)


def extra_memory(train: Callable[[], float]) -> float:
    """Peak memory of training over that of the process with its model loaded and read, bytes."""
    model = load_model(material.model())
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    del model
    gc.collect()
    train()
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - int(resident.split()[1]))


# --- bytes a weight


def held_bytes() -> int:
    """What all tensors of the process hold, shared storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def short_loss(model: PreTrainedModel) -> torch.Tensor:
    group = singles(0, [0, 1], [[2, 3]])
    return model(torch.tensor([[*group.prompt, 2, 3]])).logits.float().log_softmax(-1)[0, :, 2].sum()


def ours_bytes() -> float:
    """A 16-bit model around float32 entries, after a step, with its gradients."""
    model = load_model(material.model(), torch.bfloat16)
    sparse = SparseModel(model, random_entries(model))
    optimizer = torch.optim.AdamW(sparse.values.values())
    for _ in range(2):
        optimizer.zero_grad()
        short_loss(model).backward()
        optimizer.step()
    return held_bytes() / sum(weight.numel() for name, weight in model.named_parameters() if "values" not in name)


def dense_bytes() -> float:
    """Dense mixed training, as apex and DeepSpeed have it: 16-bit weights and gradients, float32 copy and moments."""
    model = load_model(material.model(), torch.bfloat16)
    masters = [weight.detach().float().requires_grad_() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(masters)
    for _ in range(2):
        model.zero_grad()
        short_loss(model).backward()
        for master, weight in zip(masters, model.parameters(), strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        optimizer.step()
        for master in masters:
            master.grad = None
    return held_bytes() / sum(weight.numel() for weight in model.parameters())


def against_trl(measure: str, ours: Callable[[], float], rival: Callable[[], float], goal: float, how: str) -> Case:
    name = lambda: f"TRL {version('trl')} DPOTrainer, {how} reference"  # noqa: E731 - it may not be installed
    return Case(measure, ours, rival, name, goal, higher_is_better=True, limit=COMPUTE)


improve_5, trl_5 = partial(ours_improve, 5, 5), partial(trl_dpo, 5, 5)

IMPROVE = (
    against_trl("improve, tokens/s, 5 pairs", improve_5, trl_5, 3.5, "live"),
    against_trl("improve, tokens/s, 5 pairs", improve_5, partial(trl_dpo, 5, 5, True), 2.5, "precomputed"),
    against_trl("improve, tokens/s, 1 pair", partial(ours_improve, 1, 12), partial(trl_dpo, 1, 12), 1.8, "live"),
)
WARMUP = (against_trl("warmup, tokens/s, 5 pairs", partial(ours_warmup, 5, 5), trl_5, 2.5, "live"),)
MEMORY = (
    Case(
        "improve, extra peak bytes over the loaded model",
        lambda: extra_memory(lambda: ours_improve(5, 3)),
        lambda: extra_memory(lambda: trl_dpo(5, 3)),
        lambda: f"TRL {version('trl')} DPOTrainer with AdamW",
        goal=0.25,
        higher_is_better=False,
        limit=f"activations of one row of {LONGEST} tokens",
    ),
    Case(
        "bytes a weight that training holds, 5 % mask, 16-bit weights",
        ours_bytes,
        dense_bytes,
        lambda: "dense mixed AdamW",
        goal=0.2,
        higher_is_better=False,
        limit="2 + 20ρ against 16: 7 B weights in 21 GB against 112 GB, 70 B in 210 GB against 1120 GB",
    ),
)
