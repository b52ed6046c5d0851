"""Held-out chats: mean cross-entropy of the assistant's turns, in nats a token."""

from __future__ import annotations

from allo_engine.data.reading import fitting_groups, supervised_examples
from allo_engine.evaluating.bench import Bench, Candidate, Evaluation, Line, names, sums
from allo_engine.model.sequences import singles
from allo_engine.report import Tick


def on_chats(bench: Bench) -> Evaluation:
    """Raises StageError where no turn fits."""
    examples = supervised_examples(bench.heldout, bench.encoder)
    groups = [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]
    groups = fitting_groups(groups, bench.config, bench.base, bench.report)
    rows = bench.rows()
    lengths = {group.key: len(group.scored(0)) for group in groups}
    tokens = sum(lengths.values())

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        found = sums(candidate.load(bench.config), groups, rows, tick)
        return {
            "cross_entropy": -sum(found.values()) / tokens,
            "tokens": tokens,
            "losses": [-found[group.key, 0] / lengths[group.key] for group in groups],
        }

    cases = names([list(group.prompt), list(group.responses[0])] for group in groups)
    return Evaluation(sum(group.tokens() for group in groups), cases, evaluate)
