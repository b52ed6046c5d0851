"""Improving: token-filtered DPO on pairs, in the mask.

L = −logσ(β(Σ_chosen d − Σ_{t∈K} d_rejected)), d = logπ − logπ_ref, the reference being the forgotten model, K the
⌈ε·R⌉ rejected tokens with the lowest d, R the rejected response's own length.

The aligned checkpoint is the start model merged with the delta, which holds what forgetting and improving changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from allo_engine.checkpoints.delta import merge, read_delta, write_delta
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.config import ImproveConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, pairs
from allo_engine.masking.entries import overlay, stored_values, within, write_into
from allo_engine.masking.masks import positions_of
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.logp_cache import LogpCache
from allo_engine.report import Report
from allo_engine.training import losses
from allo_engine.training.loop import sparse_trainer
from allo_engine.training.objectives import PairObjective


def run(config: ImproveConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start, delta = inputs["model"], outputs / "delta"
    groups = fitting_groups(pairs(inputs["pairs"], Encoder.of(start, config)), config, start, report)
    model = load_model(start, dtype_of(config.precision))
    forgotten = read_delta(inputs["forgotten"], start)
    write_into(model, forgotten)
    positions = positions_of(inputs["masks"] / "improve.safetensors", model)
    values = within(overlay(stored_values(start, positions), forgotten), positions)
    sparse, trainer = sparse_trainer(model, start, values, config, report, work)
    del positions, values  # the sparse model has its own
    weights = f"{fingerprint(start)}+{fingerprint(inputs['forgotten'])}"
    reference = trainer.reference(groups, LogpCache(inputs.get("cache", work), work, weights, config.precision))
    objective = PairObjective(
        reference,
        config.beta,
        lambda chosen, rejected: losses.filtered_dpo(
            chosen, rejected, config.beta, config.filter_ratio, both_sides=config.filter == "both"
        ),
    )
    metrics = trainer.train(groups, objective)
    write_delta(overlay(forgotten, sparse.trained()), start, delta)
    shutil.rmtree(outputs / "checkpoint", ignore_errors=True)  # of an earlier run into the same folder
    merge(start, delta, outputs / "checkpoint")
    trained = sum(values.numel() for values in sparse.values.values())
    return {"pairs": sum(len(group.items) for group in groups), "trained_weights": trained, **metrics}
