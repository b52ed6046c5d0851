"""Warm-up: vanilla DPO, L = −logσ(β(Σd_chosen − Σd_rejected)), d = logπ − logπ_ref; with nll and dpop, if asked for,
what keeps the chosen response likely.

Over all weights it shows which of them alignment moves, and is the baseline that ALLO is held against. The reference is
the model as it was before the first step, scored once, so that no second model is held. TRL's DPOTrainer may do it in
place of the engine's own loop, with any of its losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allo_engine.checkpoints.folder import fingerprint
from allo_engine.configs.warmup import WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, pairs
from allo_engine.model.logp_cache import LogpCache
from allo_engine.report import Report
from allo_engine.training import by_trl, losses
from allo_engine.training.exam import measure_of_pairs
from allo_engine.training.objectives import PairObjective
from allo_engine.training.own_mask import OwnMask
from allo_engine.training.trained import trained
from allo_engine.training.validation import held_out


def run(config: WarmupConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start = inputs["model"]
    groups = fitting_groups(pairs(inputs["pairs"], Encoder.of(start, config)), config, start, report)
    groups, held = held_out(groups, config)
    cache = LogpCache(inputs.get("cache", work), work, fingerprint(start), config.precision)
    counted = {"pairs": sum(len(group.items) for group in groups)}
    if config.trainer == "trl":
        stage = by_trl.Stage(config, start, groups, report, work, outputs / "checkpoint")
        return counted | stage.pairs(cache, trl_loss(config))
    training = trained(start, config, report, work, OwnMask(start, groups, config, work, report))
    objective = PairObjective(
        training.trainer.reference(groups, cache, held),
        config.beta,
        lambda chosen, rejected: losses.dpo(
            chosen.sum() - config.dpop * losses.lost(chosen), rejected.sum(), config.beta
        ),
        config.nll,
    )
    measure = measure_of_pairs(config, held, inputs, training.trainer, report, work)
    metrics = training.trainer.train(groups, objective, held, measure)
    training.save(outputs / "checkpoint")
    return {**counted, "trained_weights": training.weights, **metrics}


def trl_loss(config: WarmupConfig) -> dict[str, Any]:
    """The loss as TRL's DPOConfig names it."""
    return {
        "beta": config.beta,
        "loss_type": [config.loss, *(["sft"] if config.nll else [])],
        "loss_weights": [1.0, *([config.nll] if config.nll else [])],
        "label_smoothing": config.label_smoothing,
    }
