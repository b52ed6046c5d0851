"""Improving: token-filtered DPO on pairs, in the mask.

L = −logσ(β(Σ_chosen d − Σ_{t∈K} d_rejected)), d = logπ − logπ_ref, the reference being the forgotten model, K the
⌈ε·R⌉ rejected tokens with the lowest d, R the rejected response's own length. In a job that forgets nothing the
reference is the start model; in a later round it is the model that the round before made.

The aligned checkpoint is the start model merged with the delta, which holds what forgetting and improving changed in
all rounds, this one's times `scale`; it is described, not written: `allo merge` writes it. Of several `scales` the one
is taken whose model is best on what is held out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from allo_engine.checkpoints.delta import Values, describe, read_delta, write_delta
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.configs.improve import ImproveConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, pairs
from allo_engine.masking.entries import scaled
from allo_engine.masking.masks import GivenMask
from allo_engine.model.logp_cache import LogpCache
from allo_engine.ranks import here
from allo_engine.report import Report
from allo_engine.training import losses
from allo_engine.training.exam import measure_of_pairs
from allo_engine.training.objectives import PairObjective
from allo_engine.training.trained import Masked, trained
from allo_engine.training.validation import held_out


def run(config: ImproveConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start, delta = inputs["model"], outputs / "delta"
    groups = fitting_groups(pairs(inputs["pairs"], Encoder.of(start, config)), config, start, report)
    groups, held = held_out(groups, config)
    forgotten, aligned = (_values(inputs, name) for name in ("forgotten", "aligned"))
    training = trained(start, config, report, work, GivenMask(inputs, "improve"), forgotten or aligned)
    weights = "+".join(fingerprint(inputs[name]) for name in ("model", "forgotten", "aligned") if name in inputs)
    cache = LogpCache(inputs.get("cache", work), work, weights, config.precision)
    reference = training.trainer.reference(groups, cache, held)
    objective = PairObjective(
        reference,
        config.beta,
        lambda chosen, rejected: losses.filtered_dpo(
            chosen, rejected, config.beta, config.filter_ratio, config.filter == "both", config.dpop
        ),
        config.nll,
    )
    measure = measure_of_pairs(config, held, inputs, training.trainer, report, work)
    metrics = training.trainer.train(groups, objective, held, measure)
    changes = training.changes()
    candidates = {scale: partial(scaled, changes, start, scale, aligned) for scale in config.scales or (config.scale,)}
    if len(candidates) > 1:
        assert isinstance(training, Masked)  # as the settings have it
        metrics |= _tried(training, candidates, report)
    if here().leads:
        write_delta(candidates[metrics.get("scale", config.scale)](), start, delta)
        shutil.rmtree(outputs / "checkpoint", ignore_errors=True)  # of an earlier run into the same folder
        describe(start, delta, outputs / "checkpoint")
    return {"pairs": sum(len(group.items) for group in groups), "trained_weights": training.weights, **metrics}


def _tried(training: Masked, candidates: Mapping[float, Callable[[], Values]], report: Report) -> dict[str, float]:
    """The scale whose model is best on what is held out, the first where no loss is finite; and what was found."""
    standings: dict[float, tuple[float, float]] = {}
    told: dict[str, float] = {}
    for scale, values in candidates.items():
        training.put(values())
        standings[scale], figures = training.trainer.validated()
        told |= {f"validation_{name}_at_{scale:g}": figures[name] for name in ("loss", "accuracy") if name in figures}
    best = min(standings, key=lambda scale: standings[scale])
    report.message(f"Of the scales, {best:g} is the best on held-out items: it is the result's.", data=told)
    return {"scale": best, **told}


def _values(inputs: Inputs, name: str) -> Values:
    """Those of the sparse checkpoint that an input is, if there is one."""
    return read_delta(inputs[name], inputs["model"]) if name in inputs else {}
