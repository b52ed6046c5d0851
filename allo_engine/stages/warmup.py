"""Warm-up: vanilla DPO over all weights, L = −logσ(β(Σd_chosen − Σd_rejected)), d = logπ − logπ_ref.

Its result shows which weights alignment moves, and is the baseline that ALLO is held against. The reference is the
model as it was before the first step, scored once, so that no second model is held.
"""

from __future__ import annotations

from pathlib import Path

from allo_engine.checkpoints.folder import fingerprint
from allo_engine.config import WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, pairs
from allo_engine.model.loading import save_model
from allo_engine.model.logp_cache import LogpCache
from allo_engine.report import Report
from allo_engine.training import losses
from allo_engine.training.loop import dense_trainer
from allo_engine.training.objectives import PairObjective


def run(config: WarmupConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    encoder = Encoder.of(inputs["model"], config)
    groups = fitting_groups(pairs(inputs["pairs"], encoder), config, inputs["model"], report)
    cache = LogpCache(inputs.get("cache", work), work, fingerprint(inputs["model"]), config.precision)
    model, trainer = dense_trainer(inputs["model"], config, report, work)
    objective = PairObjective(
        trainer.reference(groups, cache),
        config.beta,
        lambda chosen, rejected: losses.dpo(chosen.sum(), rejected.sum(), config.beta),
    )
    metrics = trainer.train(groups, objective)
    save_model(model, encoder.tokenizer, outputs / "checkpoint")
    return {"pairs": sum(len(group.items) for group in groups), **metrics}
