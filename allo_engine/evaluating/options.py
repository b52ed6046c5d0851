"""Multiple choice without a word decoded: the option that the model finds the most likely.

Option i is scored as log p(option i | prompt, "The answer is"), in nats, as it stands and divided by its characters, so
that a long one is not at a disadvantage (acc and acc_norm of lm-evaluation-harness). `option_logp` is the mean log-
probability of the right option among the options, a measure that moves before any answer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from allo_engine.checkpoints.folder import context_length
from allo_engine.configs.evaluate import EvaluateConfig
from allo_engine.data.choices import Choice, choice_of
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import Problem
from allo_engine.evaluating.bench import Bench, Candidate, Line, share, sums
from allo_engine.model.sequences import Group, singles
from allo_engine.report import Tick

Asked = Sequence[tuple[int, Sequence[int], Problem]]
"""(number, prompt ids, problem) of each case."""


def on_options(bench: Bench, asked: Asked) -> Callable[[Candidate, Tick], Line] | None:
    """None where no problem lists its options, or where they are not asked for."""
    groups, choices = option_groups(bench.config, bench.encoder, context_length(bench.base), asked)
    if not groups:
        return None
    rows = bench.rows()

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        found = sums(candidate.load(bench.config), groups, rows, lambda _: tick(0))
        return _line([_Scored.of(number, choices.get(number), found) for number, _, _ in asked])

    return evaluate


def option_groups(
    config: EvaluateConfig, encoder: Encoder, longest: int, asked: Asked
) -> tuple[list[Group], dict[int, Choice]]:
    """A group a problem that lists its options, a response an option; the prefix is read and not scored."""
    prefix = encoder.text(config.option_prefix)
    groups, choices = [], {}
    for number, prompt, problem in asked if config.options else ():
        choice = choice_of(problem)
        responses = [prefix + encoder.text(f" {option}") for option in choice.options] if choice else []
        if choice and len(prompt) + max(map(len, responses)) <= longest:
            groups.append(singles(number, prompt, responses, [len(prefix)] * len(responses)))
            choices[number] = choice
    return groups, choices


@dataclass(frozen=True)
class _Scored:
    """A choice with log p of each option, in nats."""

    choice: Choice
    logps: list[float]

    @classmethod
    def of(cls, number: int, choice: Choice | None, found: dict[tuple[int, int], float]) -> Self | None:
        return cls(choice, [found[number, place] for place in range(len(choice.options))]) if choice else None

    def right(self) -> bool:
        return self._is_right([logp / len(text) for logp, text in zip(self.logps, self.choice.options, strict=True)])

    def right_raw(self) -> bool:
        return self._is_right(self.logps)

    def logp(self) -> float:
        """Of the right option among the options."""
        most = max(self.logps)
        return self.logps[self.choice.right] - most - math.log(sum(math.exp(logp - most) for logp in self.logps))

    def _is_right(self, values: list[float]) -> bool:
        return values.index(max(values)) == self.choice.right


def _line(cases: Sequence[_Scored | None]) -> Line:
    """None stands for a case that lists no options."""
    scored = [case for case in cases if case is not None]
    right = sum(case.right() for case in scored)
    return {
        "option_problems": len(scored),
        **share("option_accuracy", right, len(scored)),
        "option_accuracy_raw": sum(case.right_raw() for case in scored) / len(scored),
        "option_logp": sum(case.logp() for case in scored) / len(scored),
        "option_cases": [case.right() if case else None for case in cases],
    }
