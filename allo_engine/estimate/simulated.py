"""What a job's stages will read: a sample of its files, and what earlier stages have yet to make of them.

Responses, pairs and negatives are simulated, under one view of what models will answer: see priors.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from allo_engine.bases import PromptConfig
from allo_engine.checkpoints.folder import context_length, ends_of
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import negatives, pairs, problems
from allo_engine.data.records import NegativeGroup, Problem, SampledProblem
from allo_engine.estimate.excerpt import LINES, Excerpt
from allo_engine.estimate.priors import UNTRAINED_LENGTH, Answered, Priors, answered
from allo_engine.model.sequences import Group, singles
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.pipeline import PlannedStage
from allo_engine.report import StageError
from allo_engine.stages.pair import negatives_of, pair_up, solved_within

SIMULATED_TOKENS = 300_000
"""Tokens of responses that are simulated at most, of fewer problems where responses are many and long."""


class Simulated:
    """The data of a planned job's stages, under one view of what its models will answer. `scale` is the problems of
    the file for each that is simulated, `pair_scale` that of pairs and negatives.
    """

    def __init__(
        self, plan: Sequence[PlannedStage], model: Path, files: Mapping[str, Excerpt], priors: Priors, seed: int
    ) -> None:
        self.plan = {stage.name: stage for stage in plan}
        self.files = files
        if "sft" not in self.plan and priors.length > 1:
            priors = replace(priors, length=priors.length * UNTRAINED_LENGTH)
        self.priors = priors
        self._model, self._seed = model, seed
        self._tokenizer, self._ends = load_tokenizer(model), ends_of(model)

    def encoder(self, stage: str) -> Encoder:
        config = self.plan[stage].config
        return Encoder(self._tokenizer, config if isinstance(config, PromptConfig) else None, self._ends)

    @cached_property
    def answers(self) -> list[Answered]:
        config: Any = self.plan["sample"].config
        encoder = self.encoder("sample")
        longest = min(config.max_prompt_tokens, context_length(self._model) - 1)
        given = [(problem, ids) for problem in self._given if len(ids := encoder.prompt(problem.problem)) <= longest]
        if not given:
            raise StageError(
                "nothing_to_train_on", f"No problem is left to sample that is no longer than {longest} tokens."
            )
        solutions = [encoder.response(problem.solution) for problem, _ in given]
        random = Random(self._seed)  # noqa: S311 - a simulation, not a secret
        each = config.n * max(1, sum(map(len, solutions)) // len(solutions)) * self.priors.length
        draws = max(50, min(LINES, round(SIMULATED_TOKENS / each)))
        places = [place % len(given) for place in range(draws)]
        return [
            answered(
                *given[place], solutions[place], solutions, config.n, config.max_response_tokens, self.priors, random
            )
            for place in places
        ]

    @cached_property
    def _given(self) -> list[Problem]:
        config: Any = self.plan["sample"].config
        return problems(self.files["training_file"].folder, config.skip_share)

    @property
    def scale(self) -> float:
        """Problems of the file for each that is simulated."""
        return self.files["training_file"].scale * len(self._given) / len(self.answers)

    @cached_property
    def pairs(self) -> list[Group]:
        if "pair" not in self.plan:
            return pairs(
                self.files["training_file"].folder, self.encoder("warmup" if "warmup" in self.plan else "improve")
            )
        config: Any = self.plan["pair"].config
        found = [
            pair_up(answer.prompt, answer.right, answer.wrong, config.max_pairs, f"{self._seed}/{number}")
            for number, answer in enumerate(self.answers)
            if answer.right and answer.wrong and solved_within(answer.solved, config.pass_rate)
        ]
        return [
            Group(key, group.prompt_ids, dict(enumerate(group.responses)), [tuple(pair) for pair in group.pairs])
            for key, group in enumerate(found)
        ]

    @cached_property
    def negatives(self) -> list[NegativeGroup]:
        if "pair" not in self.plan:
            return negatives(self.files["training_file"].folder, self.encoder("token_rewards"))
        config: Any = self.plan["pair"].config
        return [
            negatives_of(_as_sampled(answer), answer.wrong[: config.max_negatives], answer.right or [answer.wrong[0]])
            for answer in self.answers
            if answer.wrong
        ]

    def wrong(self) -> list[Group]:
        return [singles(key, group.prompt_ids, group.responses) for key, group in enumerate(self.negatives)]

    @property
    def pair_scale(self) -> float:
        return self.scale if "pair" in self.plan else self.files["training_file"].scale


def _as_sampled(answer: Answered) -> SampledProblem:
    problem = answer.problem
    return SampledProblem(problem.problem, problem.solution, problem.answer, answer.prompt, [], [], [])
