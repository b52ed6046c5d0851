"""How many lines came before: exactly up to a number of distinct lines, from a sample beyond, in bounded memory."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

MOST = 2**17
"""Distinct lines that are remembered, as numbers: 16 MB."""


class Duplicates:
    """Lines by their hashes. Those with the most zeros at their end are remembered: half as many, whenever they
    become too many, so that what is left is a fair sample of the distinct lines."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._mask = most, 0
        self._repeats: dict[int, int] = {}

    def add(self, line: bytes) -> None:
        """A line, as it stands."""
        digest = xxh3_64_intdigest(line)
        if digest & self._mask:
            return
        known = len(self._repeats)
        self._repeats.setdefault(digest, 0)
        if len(self._repeats) == known:
            self._repeats[digest] += 1
        while len(self._repeats) > self._most:
            self._mask = 2 * self._mask + 1
            self._repeats = {digest: count for digest, count in self._repeats.items() if not digest & self._mask}

    @property
    def count(self) -> int:
        """Lines that are the same, byte for byte, as an earlier one."""
        return sum(self._repeats.values()) * (self._mask + 1)
