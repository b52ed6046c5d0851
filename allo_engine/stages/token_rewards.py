"""Token rewards: P_rm(t), the probability that the rewriter, shown problem, reference and prediction, writes the
prediction's own token t next. Low P marks the unaligned tokens.

With source `log_ratio` no rewriter is asked: P = σ(logπ_warmup − logπ_start), which is below one half exactly where the
warm-up made the token less likely. The reference log-probabilities that forgetting needs come from the same pass.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from allo_engine.config import TokenRewardsConfig
from allo_engine.models import Encoder, load_model, load_tokenizer
from allo_engine.reading import Inputs, fitting_groups, negatives
from allo_engine.records import NegativeGroup, ScoredGroup, write_lines
from allo_engine.report import Report, Stopped
from allo_engine.rewriting import Rewriting
from allo_engine.sequences import Group, singles
from allo_engine.training import score

Scores = dict[tuple[int, int], Tensor]


def run(config: TokenRewardsConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:  # noqa: ARG001
    encoder = Encoder(load_tokenizer(inputs["model"]), config.template)
    given = negatives(inputs["negatives"], encoder)
    plain = [singles(key, group.prompt_ids, group.responses) for key, group in enumerate(given)]
    plain = fitting_groups(plain, config, inputs["model"], report)
    rewriting = Rewriting(encoder)
    rewritten = [rewriting.scoring(group.key, given[group.key]) for group in plain]
    judged = rewritten if config.source == "reward_model" else plain
    tick = _ticker(report, sum(group.tokens() for group in [*plain, *judged]))
    budget = config.micro_batch_tokens
    reference = score(load_model(inputs["model"]), plain, budget, tick)
    if config.source == "reward_model":
        scores = score(load_model(inputs["reward_model"]), judged, budget, tick)
        probabilities = {key: logps.exp() for key, logps in scores.items()}
    else:
        scores = score(load_model(inputs["updated"]), judged, budget, tick)
        probabilities = {key: torch.sigmoid(logps - reference[key]) for key, logps in scores.items()}
    write_lines(
        outputs / "scores" / "scores.jsonl",
        [_scored(given[group.key], group, probabilities, reference) for group in plain],
    )
    tokens = torch.cat([probabilities[group.key, index][:-1] for group in plain for index in group.responses])
    return {
        "responses": sum(len(group.responses) for group in plain),
        "tokens": len(tokens),
        "unaligned_share": float((tokens < 0.5).float().mean()),
        "mean_probability": float(tokens.mean()),
    }


def _ticker(report: Report, total: int):  # type: ignore[no-untyped-def]
    done = 0

    def tick(tokens: int) -> None:
        nonlocal done
        done = min(done + tokens, total)
        report.progress(done, total)
        if report.stop_requested:
            raise Stopped

    return tick


def _scored(given: NegativeGroup, group: Group, probabilities: Scores, reference: Scores) -> ScoredGroup:
    indices = list(group.responses)
    return ScoredGroup(
        given.prompt_ids,
        [given.responses[index] for index in indices],
        [probabilities[group.key, index].tolist() for index in indices],
        [reference[group.key, index].tolist() for index in indices],
    )
