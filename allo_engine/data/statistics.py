"""Shares of held-out cases, with their intervals. Standard library only."""

from __future__ import annotations

import math


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share, at 95 %: honest also near 0 and 1 and for few cases."""
    z = 1.959963984540054
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """Difference of two models' shares on the same cases, with its 95 % interval (McNemar's variance)."""
    total = len(ours)
    gained = sum(mine and not other for mine, other in zip(ours, theirs, strict=True))
    lost = sum(other and not mine for mine, other in zip(ours, theirs, strict=True))
    difference = (gained - lost) / total
    half = 1.959963984540054 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / total)) / total
    return {"difference": difference, "low": difference - half, "high": difference + half}
