"""Who still gives signs of life, by the observer's own clock alone. Pure, and the same for stages and workers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Vigil:
    """For how long each sign has stood still. A sign names its giver and counts on; times are seconds of any monotonic
    clock, which only the caller reads."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def see(self, signs: Iterable[Hashable], now: float) -> None:
        """Take note of all signs that there are: one that is new has stood still for no time yet."""
        self._since = {sign: self._since.get(sign, now) for sign in signs}

    def still(self, sign: Hashable, now: float) -> float:
        """Seconds since the sign was first seen."""
        return now - self._since.get(sign, now)

    def forgive(self, seconds: float) -> None:
        """Hold this time against nobody: the observer itself was blind."""
        self._since = {sign: at + seconds for sign, at in self._since.items()}
