"""What must hold before arms are compared: otherwise the task or the rates cannot tell them apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from allo_engine.data.statistics import bootstrap_difference
from tests.benchmarks.study.arms import ARMS, BASELINE
from tests.benchmarks.study.runner import Outcome, Point, chosen

DENSE, MASKED = (
    [name for name, arm in ARMS.items() if (arm.method, arm.rounds) == (kind, 1)] for kind in ("dpo", "allo")
)
"""The arms of one round, by what they train."""

LOW, HIGH = 0.30, 0.60
GAIN = 0.02
DIFFERENT = 0.10
ASKED_SEEDS = 3
"""So many seeds' answers say whether two arms do the same: those of one differ by a tenth or not as its luck has it."""


@dataclass(frozen=True)
class Gate:
    """A condition, what was found, and what to change where it fails."""

    claim: str
    found: str
    passed: bool
    remedy: str

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}: {self.claim}: {self.found}" + (
            "" if self.passed else f". {self.remedy}"
        )


def sft_gate(outcomes: Mapping[Point, Outcome]) -> Gate:
    """Whether SFT leaves enough right and enough wrong to prefer one above the other."""
    right = outcomes[Point("SFT", 0.0, 0, "validation")].accuracy
    return Gate(
        f"SFT answers {LOW:.0%} to {HIGH:.0%} rightly",
        f"{right:.1%}",
        LOW <= right <= HIGH,
        "Change sft (rate, epochs) or the task's ranges" + (", or train the model longer" if right < LOW else ""),
    )


def arm_gates(outcomes: Mapping[Point, Outcome]) -> list[Gate]:
    """Whether the baseline is one, and whether a mask does anything else than it."""
    best = chosen(outcomes)
    at_best = {arm: outcomes[Point(arm, rate, 0, "validation")] for arm, rate in best.items()}
    dense, other = leader(outcomes, DENSE), leader(outcomes, MASKED)
    gain = bootstrap_difference([at_best[dense].gating], [at_best["SFT"].gating])
    pairs = [pair for seed in range(ASKED_SEEDS) for pair in _answers(outcomes, best, other, seed)]
    share = sum(ours != theirs for ours, theirs in pairs) / len(pairs)
    return [
        Gate(
            f"the best dense arm gains {100 * GAIN:.0f} points on SFT, on problems that did not choose it",
            f"{dense} at {best[dense]:g}: {points(gain)}",
            gain["difference"] >= GAIN,
            "Change the dense rates or the pairs (more problems, n, max_pairs): there is nothing to learn from these",
        ),
        Gate(
            f"A and {other} differ on {DIFFERENT:.0%} of the answers",
            f"{share:.1%} of {len(pairs)}",
            share >= DIFFERENT,
            "Raise the rates or take more steps: the arms hardly move the model",
        ),
    ]


def can_gate(arms: Collection[str]) -> bool:
    """Whether these have the arms that are gated: A, and a masked one."""
    return BASELINE in arms and any(arm in arms for arm in MASKED)


def leader(outcomes: Mapping[Point, Outcome], arms: Collection[str]) -> str:
    """Of these arms the one that is best where rates are chosen, by its chosen rate."""
    there = {arm: rate for arm, rate in chosen(outcomes).items() if arm in arms}
    return max(there, key=lambda arm: sum(outcomes[Point(arm, there[arm], 0, "validation")].choosing))


def _answers(
    outcomes: Mapping[Point, Outcome], best: Mapping[str, float], other: str, seed: int
) -> Iterator[tuple[str, str]]:
    """What A and the other answered to the same problems, where both have that seed."""
    ours, theirs = (outcomes.get(Point(arm, best[arm], seed, "validation")) for arm in ("A", other))
    return zip(ours.answers, theirs.answers, strict=True) if ours and theirs else iter(())


def points(found: Mapping[str, float]) -> str:
    """A difference in points, with its interval."""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:.1f} … {100 * found['high']:.1f})"
