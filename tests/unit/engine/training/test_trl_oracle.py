"""With ε = 1 and every weight in the mask, `improve` is DPO: the loss and gradients of TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from allo_engine.model.logps import score, token_logps
from allo_engine.model.sequences import Group, build_row
from allo_engine.training import losses
from allo_engine.training.objectives import PairObjective
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["2 + 2 = ", "The sky is ", "Name a fruit: "]
Pairs = list[tuple[str, str]]
PAIRS: Pairs = [("4", "five"), ("blue", "green and more"), ("an apple", "a car")]
EQUALLY_LONG: Pairs = [("four", "five"), ("blue", "green and more"), ("pear", "a car")]


@pytest.mark.filterwarnings("ignore")  # the oracle's own warnings are not ours to mend
@pytest.mark.parametrize(("pairs", "nll"), [(PAIRS, 0.0), (EQUALLY_LONG, 0.7)])
def test_full_filter_and_full_mask_give_trls_loss_and_gradients(tmp_path: Path, pairs: Pairs, nll: float) -> None:
    """Of the NLL, TRL takes the mean over all chosen tokens, we over a response: where all are equally long, one."""
    theirs, trl_loss = _trl(tmp_path, pairs, nll)
    reference, ours = tiny_model(seed=0), tiny_model(seed=1)
    groups = _groups(pairs)
    objective = PairObjective(
        score(reference, groups, 512, lambda _: None), 0.1, lambda c, r: losses.filtered_dpo(c, r, 0.1, 1.0), nll
    )
    row = build_row(groups)
    parts = row.split(token_logps(ours, row))
    terms = [
        objective(
            g,
            {i: parts[place, i] for i in g.responses},
            [{i: given[g.key, i] for i in g.responses} for given in objective.given],
        )[0]
        for place, g in enumerate(groups)
    ]
    loss = torch.stack(terms).sum() / len(PAIRS)
    loss.backward()
    assert float(loss) == pytest.approx(trl_loss, abs=1e-5)
    for name, weight in ours.named_parameters():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, theirs[name], atol=1e-5), name


def _groups(pairs: Pairs) -> list[Group]:
    tokenizer = tiny_tokenizer()
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    return [
        Group(key, ids(prompt), {0: [*ids(chosen), 1], 1: [*ids(rejected), 1]}, [(0, 1)])
        for key, (prompt, (chosen, rejected)) in enumerate(zip(PROMPTS, pairs, strict=True))
    ]


def _trl(folder: Path, pairs: Pairs, nll: float) -> tuple[dict[str, torch.Tensor], float]:
    """TRL's gradients and loss for one batch of the pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows: dict[str, list[Any]] = {
        "prompt": PROMPTS,
        "chosen": [chosen for chosen, _ in pairs],
        "rejected": [rejected for _, rejected in pairs],
    }
    settings = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(PAIRS),
        beta=0.1,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, nll],
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=False,
        disable_dropout=True,
        bf16=False,
    )
    model = tiny_model(seed=1)
    trainer = DPOTrainer(
        model=model,
        ref_model=tiny_model(seed=0),
        args=settings,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tiny_tokenizer(chat=False),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}, float(loss)
