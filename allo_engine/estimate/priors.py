"""What is assumed of responses that do not exist yet. Every assumption stands here, with its reason in a line.

A job's later stages depend on what the model will answer: how often it is right, how often it repeats itself, how long
it writes. So a job is simulated on a sample of its own file, under what is expected and under two other views of it,
which give the estimate its band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from allo_engine.data.records import Ids, Problem


@dataclass(frozen=True)
class Priors:
    """One view of what a model will answer.

    `right`       the share of right answers p of a problem is drawn from Beta(a, b). Expected is Jeffreys' prior
                  Beta(½, ½): a trained model mostly solves a problem or does not.
    `repeats`     a further response with the same verdict repeats an earlier one with this probability up to
                  REPEATED_TOKENS, and with that power of it for longer ones: two long texts are hardly ever equal.
    `length`      responses are so many times as long as the file's solutions: fine-tuning teaches their length.
    `kept`        stages find the log-probabilities that an earlier one left on their machine.
    """

    right: tuple[float, float] = (0.5, 0.5)
    repeats: float = 0.7
    length: float = 1.0
    kept: bool = True


REPEATED_TOKENS = 32

GIVEN_MASK = 0.05
"""The share of weights in masks that a job brings: the published one."""

EXPECTED = Priors()

FEWER = Priors(right=(0.75, 0.25), repeats=0.85, length=0.85)
"""An able model: three in four answers are right, most of them the same, and shorter."""

MORE = Priors(right=(0.75, 1.0), repeats=0.5, length=1.25, kept=False)
"""A less certain one: more problems with right and wrong answers, more distinct ones, and longer."""

UNTRAINED_LENGTH = 2.0
"""Without an sft stage a model answers in its own manner: under MORE, so many times as long again."""


@dataclass(frozen=True)
class Answered:
    """A problem with what a model may answer: its distinct right and wrong responses, the length of each of all, and
    the share of all that is right.
    """

    problem: Problem
    prompt: Ids
    right: list[Ids]
    wrong: list[Ids]
    lengths: list[int]
    solved: float


def answered(
    problem: Problem, prompt: Ids, own: Ids, others: Sequence[Ids], n: int, longest: int, priors: Priors, random: Random
) -> Answered:
    """n simulated responses: right ones are the solution or a variant of it, wrong ones are other problems' solutions.

    A response longer than `longest` is cut there: it has no end, so that its answer is neither right nor wrong.
    """
    share = random.betavariate(*priors.right)
    found: dict[bool, list[Ids]] = {True: [], False: []}
    lengths, solved = [], 0
    for _ in range(n):
        is_right = random.random() < share
        earlier = found[is_right]
        if earlier and random.random() < _repeats(earlier[0], priors):
            response = random.choice(earlier)
        else:
            response = stretched(_new(own, others, is_right, bool(earlier), random), priors.length)
            if len(response) <= longest and response not in earlier:
                earlier.append(response)
        lengths.append(min(len(response), longest))
        solved += is_right and len(response) <= longest
    return Answered(problem, prompt, found[True], found[False], lengths, solved / n)


def _repeats(response: Ids, priors: Priors) -> float:
    return float(priors.repeats ** max(1.0, len(response) / REPEATED_TOKENS))


def _new(own: Ids, others: Sequence[Ids], is_right: bool, varied: bool, random: Random) -> Ids:
    if not is_right:
        return random.choice(others)
    if not varied:
        return own
    place = random.randrange(len(own))  # another way to say it: other from some token on
    return [*own[:place], *(-1 - random.getrandbits(30) for _ in own[place:-1]), own[-1]]


def stretched(ids: Ids, factor: float) -> Ids:
    """A response so many times as long, its end kept; at least its end."""
    length = max(0, round(len(ids) * factor) - 1)
    text = ids[:-1] or ids
    return [*(text[place % len(text)] for place in range(length)), ids[-1]]
