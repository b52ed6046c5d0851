"""Whose stage is next: priorities first, then fair shares between owners. Pure; the clock is its caller's.

Ready stages stand in lines, one for each owner and priority, in the order of the database. The next free place goes to
the line of the highest level; of lines of one level to the owner who has the fewest devices under way; then to the one
who has used the fewest device seconds lately; then to the oldest stage.

A line's level is its priority, and one more for every `rise` seconds in which nothing of it was given though it waited.
So a line that has waited for three of them stands before every line that was given something meanwhile: none starves,
however many of a higher priority come.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

from service.jobs.running.flight import Waiting

Line = tuple[str, int]
"""An owner and a priority."""

_FORGOTTEN = 1e-3
"""Device seconds that are none any more."""


class Shares:
    """What the owners have had, and how long their lines have waited, in seconds of a monotonic clock. `half_life`:
    after so long, use counts half."""

    def __init__(self, rise: float = 3600.0, half_life: float = 3600.0) -> None:
        self._rise, self._half_life = rise, half_life
        self._used: dict[str, float] = {}
        self._since: dict[Line, float] = {}

    def see(self, ready: Iterable[Waiting], held: Mapping[str, int], now: float, passed: float) -> None:
        """Take note of who waits, and of the devices that each owner held for the `passed` seconds up to now."""
        faded = 0.5 ** (passed / self._half_life)
        owners = self._used.keys() | held.keys()
        used = {owner: self._used.get(owner, 0.0) * faded + held.get(owner, 0) * passed for owner in owners}
        self._used = {owner: seconds for owner, seconds in used.items() if seconds > _FORGOTTEN}
        self._since = {line: self._since.get(line, now) for line in map(_line, ready)}

    def gave(self, stage: Waiting, now: float) -> None:
        """Something of the stage's line was given a place."""
        self._since[_line(stage)] = now

    def turns(self, ready: Iterable[Waiting], held: Mapping[str, int], now: float) -> Iterator[Waiting]:
        """The stages, each when it is its turn. Whoever gives one a place counts it in `held`, devices by owner, before
        asking for the next."""
        lines = defaultdict[Line, deque[tuple[int, Waiting]]](deque)
        for place, stage in enumerate(ready):
            lines[_line(stage)].append((place, stage))

        def rank(line: Line) -> tuple[int, int, float, int, Line]:
            owner, priority = line
            level = priority + int((now - self._since.get(line, now)) / self._rise)
            return -level, held.get(owner, 0), self._used.get(owner, 0.0), lines[line][0][0], line

        heap = [rank(line) for line in lines]
        heapq.heapify(heap)
        while heap:
            line = heap[0][-1]
            if (present := rank(line)) != heap[0]:  # its owner has more under way than when it came here
                heapq.heapreplace(heap, present)
                continue
            yield lines[line].popleft()[1]
            if lines[line]:
                heapq.heapreplace(heap, rank(line))
            else:
                heapq.heappop(heap)


def _line(stage: Waiting) -> Line:
    return stage.owner, stage.priority
