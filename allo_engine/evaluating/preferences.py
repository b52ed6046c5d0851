"""Held-out preferences: how often and how far the implicit reward β(logπ − logπ_start) tells a pair apart, and whether
σ of its margin can be believed as a probability."""

from __future__ import annotations

import torch

from allo_engine.data.reading import fitting_groups, pairs
from allo_engine.data.statistics import reliability
from allo_engine.evaluating.bench import Bench, Candidate, Evaluation, Line, names, share, sums
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.report import Tick
from allo_engine.training.objectives import reward_figures


def on_preferences(bench: Bench) -> Evaluation:
    """Raises StageError where no pair fits."""
    config = bench.config
    groups = fitting_groups(pairs(bench.heldout, bench.encoder), config, bench.base, bench.report)
    rows = bench.rows()
    # in the policies' precision: a model against itself has margin 0
    reference = sums(load_model(bench.start, dtype_of(config.precision)), groups, rows, lambda _: None)

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        own = sums(candidate.load(config), groups, rows, tick)
        ratio = {key: value - reference[key] for key, value in own.items()}
        found = [
            (ratio[group.key, chosen], ratio[group.key, rejected])
            for group in groups
            for chosen, rejected in group.items
        ]
        chosen_P, rejected_P = torch.tensor(found, dtype=torch.float64).T
        figures = reward_figures(chosen_P, rejected_P, config.beta)
        right, count = float(figures["reward_accuracy"][0]), len(found)
        return {
            **share("accuracy", right, count),
            "margin": float(figures["reward_margin"][0]) / count,
            "pairs": count,
            **reliability([config.beta * (chosen - rejected) for chosen, rejected in found]),
            "cases": [chosen > rejected for chosen, rejected in found],
        }

    contents = (
        [list(ids) for ids in (group.prompt, *(group.responses[index] for index in item))]
        for group in groups
        for item in group.items
    )
    return Evaluation(sum(group.tokens() for group in groups), names(contents), evaluate)
