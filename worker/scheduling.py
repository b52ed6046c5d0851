"""What the scheduler decides, apart from what it does: no clock, no database, no broker in here.

The database owns the truth and the broker is a doorbell, so these decisions suffice, and each may be wrong without
harm, because whatever follows from it is a compare-and-set on (stage, epoch) and on what its worker has left:

- **give** a ready stage, whose turn it is (see `worker.sharing`), to a living worker that has what it needs, and ring
  for it there; again, where it is not claimed for a while, for messages get lost with the worker that had taken them,
  and with the broker; and to another worker, where the first has died or does not answer;
- **plan anew** a stage that was planned for code which no living worker runs, where they run this scheduler's;
- **expire** a running stage whose (epoch, beat) has not changed for a lease of *our own* monotonic clock, and
  **forget** a worker of which that is true.

A stage that no worker has room for keeps a worker that could run it: nothing whose turn is later is placed there until
it has its place, so that many small stages do not starve a large one.

Two schedulers at once would double some rings and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from service.jobs.running.flight import Host, Placed, Running, Waiting
from service.jobs.running.placement import Held, Offer, able, seat
from service.jobs.running.vigil import Vigil
from worker.sharing import Shares


@dataclass(frozen=True)
class Policy:
    """How patient the scheduler is, in seconds, and the code of every stage that it plans for; `rise` and `half_life`
    are those of fair shares (see `worker.sharing`)."""

    codes: frozenset[str]
    ring_again: float = 60.0
    lease: float = 60.0
    blind: float = 5.0
    rise: float = 3600.0
    half_life: float = 3600.0


@dataclass(frozen=True)
class Snapshot:
    """The stages that are not at rest, and the workers; `ready` oldest job first."""

    ready: tuple[Waiting, ...]
    dispatched: tuple[Placed, ...]
    running: tuple[Running, ...]
    hosts: tuple[Host, ...]


@dataclass(frozen=True)
class Give:
    """Note that the stage is the worker's, with these devices of it, and, if that succeeded, ring for it there."""

    stage: Waiting
    worker: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanAnew:
    """Name the stage's result by our own code."""

    stage: Waiting


@dataclass(frozen=True)
class Expire:
    """Take a stage from an owner that gave no sign of life."""

    stage: Running


@dataclass(frozen=True)
class Forget:
    """Strike off a worker that gave no sign of life."""

    host: Host


Action = Give | PlanAnew | Expire | Forget


class Scheduler:
    """Remembers when it rang and what it saw, on a clock that only its caller reads."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._rung: dict[tuple[str, int, str], float] = {}
        self._leases, self._beats = Vigil(), Vigil()
        self._shares = Shares(policy.rise, policy.half_life)
        self._looked: float | None = None

    def decide(self, snapshot: Snapshot, now: float) -> list[Action]:
        """What to do about this snapshot, seen at `now`.

        A new scheduler has rung for nothing yet, so that it rings for every dispatched stage at once: after a restart
        nobody waits out a lost message.
        """
        self.watch(snapshot, now)
        dead = [host for host in snapshot.hosts if self._beats.still(_sign(host), now) >= self.policy.lease]
        lost = [stage for stage in snapshot.running if self._leases.still(_sign(stage), now) >= self.policy.lease]
        known = {(placed.stage.stage_id, placed.stage.epoch) for placed in snapshot.dispatched}
        self._rung = {rung: at for rung, at in self._rung.items() if rung[:2] in known}
        living = {host.id: host.offer for host in snapshot.hosts if host not in dead}
        return [*map(Expire, lost), *map(Forget, dead), *self._place(snapshot, living, now)]

    def watch(self, snapshot: Snapshot, now: float) -> None:
        """Take note of who lives and who has what, and decide nothing: what one that stands by has seen counts once it
        leads."""
        passed = self._forgive_blindness(now)
        self._leases.see(map(_sign, snapshot.running), now)
        self._beats.see(map(_sign, snapshot.hosts), now)
        self._shares.see(snapshot.ready, _under_way([*snapshot.running, *snapshot.dispatched]), now, passed)

    def acted(self, now: float) -> None:
        """All that was decided is done. The time that it took, at a broker that hangs say, was no blindness: workers
        could have beaten in it."""
        self._looked = now

    def rang(self, given: Give, now: float) -> None:
        """A ring reached the broker. One that did not is tried again at the next look."""
        self._rung[given.stage.stage_id, given.stage.epoch, given.worker] = now

    def _forgive_blindness(self, now: float) -> float:
        """Time in which we did not look (database away, ourselves frozen) is no evidence against anybody. How long ago
        we looked, where that was a moment ago."""
        gap = 0.0 if self._looked is None else now - self._looked
        if gap > self.policy.blind:
            self._leases.forgive(gap)
            self._beats.forgive(gap)
        self._looked = now
        return min(gap, self.policy.blind)

    def _place(self, snapshot: Snapshot, living: Mapping[str, Offer], now: float) -> list[Action]:
        stay = [placed for placed in snapshot.dispatched if self._may_yet_be_claimed(placed, living, now)]
        astray = [placed for placed in snapshot.dispatched if placed not in stay]
        held = _held([*snapshot.running, *stay], living)
        again = [Give(placed.stage, placed.worker or "", placed.devices) for placed in stay if self._at(placed) is None]
        silent = {placed.stage: placed.worker for placed in astray}
        codes = {code for offer in living.values() for code in offer.runs}
        anew = self.policy.codes <= codes
        foreign = [stage for stage in (*silent, *snapshot.ready) if anew and stage.code not in codes]
        found: list[Action] = [*again, *map(PlanAnew, foreign)]
        under_way = _under_way([*snapshot.running, *stay])
        first, then = ([stage for stage in stages if stage.code in codes] for stages in (silent, snapshot.ready))
        turns = chain(first, self._shares.turns(then, under_way, now))
        rivals = sum(stage.needs.devices != 0 for stage in (*first, *then))
        for give in _assign(turns, rivals, living, held, silent):
            self._shares.gave(give.stage, now)
            under_way[give.stage.owner] += _devices(give)
            found.append(give)
        return found

    def _may_yet_be_claimed(self, placed: Placed, living: Mapping[str, Offer], now: float) -> bool:
        """Whether its worker lives, and was not rung in vain."""
        rung = self._at(placed)
        return placed.worker in living and (rung is None or now - rung < self.policy.ring_again)

    def _at(self, placed: Placed) -> float | None:
        """When the stage was rung for where it is now."""
        return self._rung.get((placed.stage.stage_id, placed.stage.epoch, placed.worker or ""))


def _assign(
    turns: Iterable[Waiting],
    rivals: int,
    living: Mapping[str, Offer],
    held: Mapping[str, list[Held]],
    silent: Mapping[Waiting, str | None],
) -> Iterable[Give]:
    """A place for each stage in turn: the best of those that are free and kept for no stage before it. A worker that
    was silent when rung for a stage is that stage's last choice. `rivals` of the stages take devices."""
    kept: set[str] = set()
    for stage in turns:
        if kept == living.keys():
            return
        could = able(stage.needs, {name: offer for name, offer in living.items() if stage.code in offer.runs})
        share = max(1, -(-rivals // max(1, len(could))))
        rivals -= stage.needs.devices != 0
        seats = {name: seat(stage.needs, living[name], held[name], share) for name in could if name not in kept}
        found = [(name == silent.get(stage), place.left, name, place) for name, place in seats.items() if place]
        if found:
            *_, name, place = min(found, key=lambda choice: choice[:3])
            held[name].append(Held(stage.needs, place.devices))
            yield Give(stage, name, place.devices)
        else:
            kept.update(sorted(seats)[:1])


def _held(stages: Iterable[Running | Placed], living: Mapping[str, Offer]) -> dict[str, list[Held]]:
    """What the stages that are under way have of each living worker."""
    held: dict[str, list[Held]] = {name: [] for name in living}
    for stage in stages:
        if stage.worker in held:
            needs = stage.stage.needs if isinstance(stage, Placed) else stage.needs
            held[stage.worker].append(Held(needs, stage.devices))
    return held


def _under_way(stages: Iterable[Running | Placed]) -> Counter[str]:
    """The devices that each owner's stages have."""
    found = Counter[str]()
    for stage in stages:
        found[stage.stage.owner if isinstance(stage, Placed) else stage.owner] += _devices(stage)
    return found


def _devices(stage: Running | Placed | Give) -> int:
    """How many it has; a place without devices counts as one."""
    return max(1, len(stage.devices))


def _sign(giver: Running | Host) -> Hashable:
    if isinstance(giver, Host):
        return giver.id, giver.beat
    return giver.stage_id, giver.epoch, giver.beat
