"""Forgetting: token-weighted NPO on wrong responses, in the mask.

L = −Σ_t w_t·logσ(−β(logπ_t − logπ_ref,t)) / #{w_t ≠ 0}, over a whole batch. The weights mark the unaligned tokens,
those with a low P: w = 1[P < 0.5]. (The released script multiplies by P itself, and so forgets what the rewriter
endorses: `legacy`.) What ends a response is never forgotten. The reference is the model that forgetting starts from, as
token_rewards scored it; in 16 bits it is scored anew (see logp_cache.py). With loss `simnpo` there is none.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from allo_engine.checkpoints.delta import Values, describe, write_delta
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.configs.forget import ForgetConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs
from allo_engine.data.records import ScoredGroup
from allo_engine.masking.masks import GivenMask
from allo_engine.model.loading import dtype_of
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.logps import PerToken
from allo_engine.model.sequences import singles
from allo_engine.ranks import here
from allo_engine.report import Report
from allo_engine.training.objectives import Objective, SimNpo, TokenNpo
from allo_engine.training.trained import trained
from allo_engine.training.validation import held_out


def run(config: ForgetConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start = inputs["model"]
    ends = torch.tensor(Encoder.of(start, config).ends)
    scored = ScoredGroup.read(inputs["scores"] / "scores.jsonl")
    groups = [singles(key, group.prompt_ids, group.responses) for key, group in enumerate(scored)]
    weights = {
        (key, index): token_weights(torch.tensor(probabilities), torch.isin(torch.tensor(ids), ends), config)
        for key, group in enumerate(scored)
        for index, (probabilities, ids) in enumerate(zip(group.probabilities, group.responses, strict=True))
    }
    everything = torch.cat(list(weights.values()))
    metrics = {"responses": len(weights), "forgotten_share": float((everything != 0).float().mean())}
    if not everything.any():
        report.message("No token of the wrong responses is unaligned: nothing was forgotten.", "warn")
        _leave({}, start, outputs)
        return {**metrics, "trained_weights": 0}
    groups, held = held_out(groups, config)
    training = trained(start, config, report, work, GivenMask(inputs, "forget"))
    if config.loss == "simnpo":
        objective: Objective = SimNpo(weights, config.beta, config.gamma)
    elif dtype_of(config.precision) == torch.float32:
        objective = TokenNpo(_reference(scored), weights, config.beta)
    else:  # what another stage scored, in other rows, would not be 0 away from the model
        cache = LogpCache(work, work, fingerprint(start), config.precision)
        objective = TokenNpo(training.trainer.reference(groups, cache, held), weights, config.beta)
    metrics |= training.trainer.train(groups, objective, held)
    changes = training.changes()
    if here().leads:
        _leave(changes, start, outputs)
    return {**metrics, "trained_weights": training.weights}


def _leave(changes: Values, start: Path, outputs: Path) -> None:
    write_delta(changes, start, outputs / "delta")
    shutil.rmtree(outputs / "checkpoint", ignore_errors=True)  # of an earlier run into the same folder
    describe(start, outputs / "delta", outputs / "checkpoint")


def _reference(scored: list[ScoredGroup]) -> PerToken:
    """logπ_ref as token_rewards left it."""
    return {
        (key, index): torch.tensor(logps)
        for key, group in enumerate(scored)
        for index, logps in enumerate(group.reference_logps)
    }


def token_weights(probabilities_T: Tensor, is_end_T: Tensor, config: ForgetConfig) -> Tensor:
    """The weight w of each token of a wrong response, [T], from the rewriter's probability that it stays."""
    weights_T: Tensor = config.weight(probabilities_T)
    return torch.where(is_end_T, 0.0, weights_T)
