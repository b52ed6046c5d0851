"""The token-level reward model: SFT on the rewriting task (arXiv 2401.06081), −Σ logπ(correction tokens) / #tokens.

Corrections are the user's where a file of them is given, else a teacher's where one is named, else the right response
of the same problem nearest to the wrong one. A rewriter of its own (`model` of the settings) has the vocabulary of the
model that the job aligns, the `policy`, and takes that one's ids.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

from allo_engine.configs.reward_model import RewardModelConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED, Inputs, fitting_groups, negatives
from allo_engine.data.records import NegativeGroup, as_problem, read_lines
from allo_engine.data.rewriting import Rewriting
from allo_engine.data.teacher import Corrections
from allo_engine.report import Report
from allo_engine.teacher import TEACHER_KEY
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.own_mask import OwnMask
from allo_engine.training.trained import trained
from allo_engine.training.validation import held_out


def run(config: RewardModelConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start = inputs["model"]
    encoder = Encoder.of(inputs.get("policy", start), config)
    if "corrections" in inputs:
        given = corrections(inputs["corrections"], encoder)
    else:
        given = [_first(group, config.max_negatives) for group in negatives(inputs["negatives"], encoder)]
    if config.max_problems is not None and config.max_problems < len(given):
        given = random.Random(config.seed).sample(given, config.max_problems)  # noqa: S311 - a draw, not a secret
    asked: dict[str, float] = {}
    if config.corrections is not None:
        teacher = Corrections(
            config.corrections, os.environ.get(TEACHER_KEY), inputs.get("cache", work), encoder, report
        )
        given = teacher.write(given)
        asked = teacher.metrics()
    rewriting = Rewriting(encoder)
    training = [rewriting.training(key, group) for key, group in enumerate(given)]
    groups = fitting_groups(training, config, start, report)
    groups, held = held_out(groups, config)
    model = trained(start, config, report, work, OwnMask(start, groups, config, work, report))
    metrics = model.trainer.train(groups, CrossEntropy(), held)
    model.save(outputs / "checkpoint")
    examples = sum(len(group.items) for group in groups)
    return {"examples": examples, "trained_weights": model.weights, **asked, **metrics}


def corrections(folder: Path, encoder: Encoder) -> list[NegativeGroup]:
    """The lines of an uploaded file {problem, solution, prediction, correction}."""
    return [
        NegativeGroup(
            problem.problem,
            problem.solution,
            encoder.prompt(problem.problem),
            [encoder.response(line["prediction"])],
            [encoder.response(line["correction"])],
        )
        for line in read_lines(folder / UPLOADED)
        for problem in [as_problem(line)]
    ]


def _first(group: NegativeGroup, most: int) -> NegativeGroup:
    return replace(group, responses=group.responses[:most], corrections=group.corrections[:most])
