"""What the scheduler decides, apart from what it does: no clock, no database, no broker in here.

The database owns the truth and the broker is a doorbell, so three decisions suffice, and each may be wrong without
harm, because whatever follows from it is a compare-and-set on (stage, epoch):

- **dispatch** a ready stage, highest priority first, while there is a free slot;
- **ring again** for a dispatched stage that nobody claimed for a while: messages get lost with the worker that had
  taken them, and with the broker;
- **expire** a running stage whose (epoch, beat) has not changed for a lease of *our own* monotonic clock.

Two schedulers at once would double some rings and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How patient the scheduler is, in seconds, and how many stages may be under way at once."""

    slots: int
    ring_again: float = 60.0
    lease: float = 60.0
    blind: float = 5.0


@dataclass(frozen=True)
class Waiting:
    """A stage that is ready or dispatched, at an epoch."""

    stage_id: str
    epoch: int


@dataclass(frozen=True)
class Running:
    """A stage that somebody claimed, and the last sign of life that it gave."""

    stage_id: str
    epoch: int
    beat: int


@dataclass(frozen=True)
class Snapshot:
    """The stages that are not at rest; `ready` in order of priority."""

    ready: tuple[Waiting, ...]
    dispatched: tuple[Waiting, ...]
    running: tuple[Running, ...]


@dataclass(frozen=True)
class Dispatch:
    """Mark it dispatched and, if that succeeded, ring for it."""

    stage: Waiting


@dataclass(frozen=True)
class RingAgain:
    """Ring for a stage that is dispatched already."""

    stage: Waiting


@dataclass(frozen=True)
class Expire:
    """Take a stage from an owner that gave no sign of life."""

    stage: Running


Action = Dispatch | RingAgain | Expire


class Scheduler:
    """Remembers when it rang and what it saw, on a clock that only its caller reads."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._rung: dict[Waiting, float] = {}
        self._seen: dict[Running, float] = {}
        self._looked: float | None = None

    def decide(self, snapshot: Snapshot, now: float) -> list[Action]:
        """What to do about this snapshot, seen at `now`.

        A new scheduler has rung for nothing yet, so that it rings for every dispatched stage at once: after a restart
        nobody waits out a lost message.
        """
        self._forgive_blindness(now)
        self._seen = {stage: self._seen.get(stage, now) for stage in snapshot.running}
        known = {*snapshot.ready, *snapshot.dispatched}
        self._rung = {stage: at for stage, at in self._rung.items() if stage in known}
        return [*self._expire(now), *self._ring_again(snapshot, now), *self._dispatch(snapshot)]

    def rang(self, stage: Waiting, now: float) -> None:
        """A ring reached the broker. One that did not is tried again at the next look."""
        self._rung[stage] = now

    def _forgive_blindness(self, now: float) -> None:
        """Time in which we did not look (database away, ourselves frozen) is no evidence against anybody."""
        gap = 0.0 if self._looked is None else now - self._looked
        if gap > self.policy.blind:
            self._seen = {stage: at + gap for stage, at in self._seen.items()}
        self._looked = now

    def _expire(self, now: float) -> list[Action]:
        return [Expire(stage) for stage, since in self._seen.items() if now - since >= self.policy.lease]

    def _ring_again(self, snapshot: Snapshot, now: float) -> list[Action]:
        due = now - self.policy.ring_again
        return [RingAgain(stage) for stage in snapshot.dispatched if self._rung.get(stage, due) <= due]

    def _dispatch(self, snapshot: Snapshot) -> list[Action]:
        free = self.policy.slots - len(snapshot.running) - len(snapshot.dispatched)
        return [Dispatch(stage) for stage in snapshot.ready[: max(free, 0)]]
