"""Shares of held-out cases and differences of models, with their intervals. Standard library and numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_CHUNK = 500
"""Draws that are held at once: a few megabytes for thousands of problems."""


def wilson(right: float, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share, at 95 %: honest also near 0 and 1 and for few cases."""
    z = 1.959963984540054
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # rounding leaves out no share


def paired_difference(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """Difference of two models' shares on the same cases, with its 95 % interval (McNemar's variance)."""
    total = len(ours)
    gained = sum(mine and not other for mine, other in zip(ours, theirs, strict=True))
    lost = sum(other and not mine for mine, other in zip(ours, theirs, strict=True))
    difference = (gained - lost) / total
    half = 1.959963984540054 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / total)) / total
    return {"difference": difference, "low": difference - half, "high": difference + half}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate that one of k samples is right, `right` of `samples` being so (arXiv 2107.03374, eq. 1).

    1 − C(n − c, k) / C(n, k), in whole numbers; k is at most `samples`.
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def bootstrap_difference(
    ours_SP: Sequence[Sequence[float]], theirs_SP: Sequence[Sequence[float]], *, seed: int = 0, draws: int = 10_000
) -> dict[str, float]:
    """Mean difference of two methods, its 95 % interval and two-sided p, by a paired bootstrap over seeds and problems.

    `ours_SP[s][p]` is what the run of seed s made of problem p (right or not, pass@k, nats); `theirs_SP` is paired with
    it, run by run and problem by problem. A draw takes seeds and, of these, problems, both with replacement, the same
    problems for every seed as all were asked the same. Equal arguments give equal figures.

    Such draws alone are too narrow for few seeds and too wide where neither seeds nor problems matter, so that their
    deviations are scaled to the unbiased standard error of two crossed factors (Cameron, Gelbach and Miller 2011, eq.
    2.11: seeds + problems − both) and get the tails of Student's t with Satterthwaite's degrees of freedom. With one
    seed the problems alone are drawn: that seed's luck is then in no interval.
    """
    gaps_SP = np.asarray(ours_SP, dtype=np.float64) - np.asarray(theirs_SP, dtype=np.float64)
    estimate = float(gaps_SP.mean())
    error, freedom = _standard_error(gaps_SP)
    rng = np.random.default_rng(seed)
    deviations_B = _draws(gaps_SP, draws, rng) - estimate
    spread = float(deviations_B.std())
    scale = error / spread if spread > 0 else 0.0
    tails_B = np.sqrt(freedom / rng.chisquare(freedom, draws))
    drawn_B = estimate + deviations_B * scale * tails_B
    low, high = np.quantile(drawn_B, (0.025, 0.975))
    beyond = min(int((drawn_B <= 0).sum()), int((drawn_B >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (draws + 1))
    return {"difference": estimate, "low": float(low), "high": float(high), "p": p}


def _standard_error(gaps_SP: Any) -> tuple[float, float]:
    """Of the mean of all, and its degrees of freedom; never below that of either factor alone."""
    seeds, problems = gaps_SP.shape
    mean = gaps_SP.mean()
    of_problems = _variance(gaps_SP.mean(axis=0) - mean, problems - 1) / problems
    if seeds == 1:
        return math.sqrt(of_problems), max(1, problems - 1)
    of_seeds = _variance(gaps_SP.mean(axis=1) - mean, seeds - 1) / seeds
    rest_SP = gaps_SP - gaps_SP.mean(axis=0) - gaps_SP.mean(axis=1, keepdims=True) + mean
    both = _variance(rest_SP, (seeds - 1) * (problems - 1)) / (seeds * problems)
    total = max(of_seeds + of_problems - both, of_seeds, of_problems)
    weight = of_seeds**2 / (seeds - 1) + of_problems**2 / max(1, problems - 1)
    return math.sqrt(total), float(total**2 / weight) if weight > 0 else 1.0


def _variance(deviations: Any, freedom: int) -> float:
    return float((deviations**2).sum()) / max(1, freedom)


def _draws(gaps_SP: Any, draws: int, rng: np.random.Generator) -> Any:
    """Means of `draws` resamples."""
    seeds, problems = gaps_SP.shape
    means = []
    for first in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - first)
        seeds_BS = rng.multinomial(seeds, [1 / seeds] * seeds, size) / seeds
        problems_BP = rng.integers(0, problems, (size, problems))
        means.append(np.take_along_axis(seeds_BS @ gaps_SP, problems_BP, axis=1).mean(axis=1))
    return np.concatenate(means)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of each of several comparisons (Holm 1979): below 0.05, it holds though all of them were looked at.

    The smallest p times m, the next times m − 1, and so on; none below an earlier one, none above 1.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        highest = min(1.0, max(highest, (len(ps) - rank) * ps[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in ps}


def reliability(margins: Sequence[float], bins: int = 10) -> dict[str, Any]:
    """Whether σ(margin) can be believed as the probability that the chosen of two responses is the better one.

    Each pair counts for the response that the model prefers, with confidence max(σ, 1 − σ) in [½, 1]; a tie is half
    right. `calibration_error` is the expected one, Σ share·|right − confidence| over equal bins of confidence (arXiv
    1706.04599, eq. 3); `reliability` has the bins that hold pairs.
    """
    held: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        right = 0.5 + 0.5 * ((margin > 0) - (margin < 0))
        held[min(bins - 1, int((confidence - 0.5) * 2 * bins))].append((confidence, right))
    table = []
    error = 0.0
    for place, pairs in enumerate(held):
        if pairs:
            confidence, right = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
            error += len(pairs) / len(margins) * abs(right - confidence)
            low, high = (0.5 + edge / (2 * bins) for edge in (place, place + 1))
            table.append({"low": low, "high": high, "pairs": len(pairs), "confidence": confidence, "right": right})
    return {"calibration_error": error, "reliability": table}
