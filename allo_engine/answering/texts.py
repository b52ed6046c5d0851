"""A response's text as it grows: told piece by piece, and cut before the first text that is to stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What stands at the end of a text whose last character has not all of its bytes yet."""


class Text:
    """The text of one response. `decode` makes one of ids; `stops` end it, and are no part of it."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._told = 0
        self.stopped = False

    def grown(self, ids: list[int], ended: bool) -> str:
        """What is new of the text of these ids, as far as later ones cannot change it; all of it, once it `ended`."""
        whole = self._decode(ids)
        found = min((place for stop in self._stops if (place := whole.find(stop)) >= 0), default=None)
        self.stopped = found is not None
        certain = whole[:found] if ended or self.stopped else whole[: self._certain(whole)]
        new = certain[self._told :]
        self._told = max(self._told, len(certain))
        return new

    def _certain(self, text: str) -> int:
        """How much of an unfinished text neither waits for bytes nor may be the beginning of a stop."""
        end = len(text.rstrip(UNFINISHED))
        begun = (
            size
            for stop in self._stops
            for size in range(1, min(len(stop), end + 1))
            if text.startswith(stop[:size], end - size)
        )
        return end - max(begun, default=0)
