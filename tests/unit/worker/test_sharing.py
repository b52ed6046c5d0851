"""Whose stage is next: priorities, fair shares between owners, and nobody starves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.jobs.running.flight import Running, Waiting
from tests.offers import an_offer
from worker.scheduling import Give, Host, Policy, Scheduler, Snapshot
from worker.sharing import Shares

CODE = "a" * 64
LOW, NORMAL, HIGH = -1, 0, 1
OWNERS = "abc"


def stage(number: int, owner: str = "a", priority: int = NORMAL) -> Waiting:
    return Waiting(f"stage-{number:06}", 0, code=CODE, owner=owner, priority=priority)


def given_of(shares: Shares, ready: list[Waiting], slots: int, now: float, held: Counter[str] | None = None) -> str:
    """The owners of what so many free slots are given, in its order."""
    held, found = held or Counter(), []
    for one in shares.turns(ready, held, now):
        if len(found) == slots:
            break
        found.append(one)
        held[one.owner] += 1
        shares.gave(one, now)
    return "".join(one.owner for one in found)


def looked(ready: list[Waiting], shares: Shares | None = None, now: float = 0.0, **held: int) -> Shares:
    shares = shares or Shares()
    shares.see(ready, held, now, 0.0)
    return shares


def test_of_one_owner_the_oldest_is_first() -> None:
    ready = [stage(number) for number in range(5)]
    assert list(looked(ready).turns(ready, Counter(), 0)) == ready


def test_a_higher_priority_goes_first_whoever_has_it() -> None:
    ready = [stage(1, "a"), stage(2, "b", LOW), stage(3, "c", HIGH), stage(4, "a", HIGH)]
    assert given_of(looked(ready), ready, 4, 0) == "caab"


def test_owners_take_turns_however_many_stages_one_of_them_has() -> None:
    ready = [*(stage(number, "a") for number in range(100)), stage(200, "b"), stage(201, "b"), stage(202, "c")]
    assert given_of(looked(ready), ready, 8, 0) == "abcabaaa"


def test_whoever_has_devices_under_way_comes_later() -> None:
    ready = [stage(1, "a"), stage(2, "b")]
    assert given_of(looked(ready), ready, 1, 0, Counter(a=1)) == "b"
    assert given_of(looked(ready), ready, 2, 0, Counter(a=1, b=4)) == "ab"


def test_on_one_slot_owners_get_equal_time_though_their_stages_take_longer_or_shorter() -> None:
    shares, seconds = Shares(half_life=1e6), Counter[str]()
    for now in range(2000):
        ready = [stage(now, "a"), stage(now, "b")]
        shares.see(ready, {}, now, 0.0)
        (owner,) = given_of(shares, ready, 1, now)
        took = {"a": 30, "b": 1}[owner]
        shares.see(ready, {owner: 1}, now, took)
        seconds[owner] += took
    assert abs(seconds["a"] - seconds["b"]) <= 60


def test_use_is_forgotten_with_time() -> None:
    shares, ready = Shares(half_life=10), [stage(1, "a"), stage(2, "b")]
    shares.see(ready, {"a": 1}, 0, 100)
    assert given_of(shares, ready, 1, 0) == "b"
    shares.see(ready, {}, 200, 200)
    assert given_of(shares, ready, 1, 200) == "a", "the oldest, where nobody has used anything lately"


def test_a_line_that_is_never_given_anything_rises_above_all_that_are() -> None:
    shares, low = Shares(rise=100), stage(0, "a", LOW)
    for now in range(0, 200, 10):
        ready = [low, stage(1000 + now, "b", HIGH)]
        shares.see(ready, {}, now, 10)
        assert given_of(shares, ready, 1, now) == "b"
    assert given_of(looked(ready, shares, 300, a=1), ready, 1, 300) == "a", "whatever else its owner has"
    assert given_of(looked(ready, shares, 301), ready, 1, 301) == "b", "it was given something: it begins anew"


@given(
    slots=st.integers(1, 3),
    arrivals=st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from((LOW, NORMAL, HIGH))), max_size=120),
    takes=st.integers(1, 5),
)
def test_every_ready_stage_is_given_a_place_within_a_bound(slots, arrivals, takes) -> None:
    """Arrivals come one a second, faster than they are done. A line waits for three rises, and then for one stage of
    each line before it; a stage waits for as many turns of its line as there are stages before it in that."""
    rise = 20.0
    scheduler, lines = Scheduler(Policy(frozenset({CODE}), lease=1e9, blind=1e9, rise=rise)), 3 * len(OWNERS)
    bound = 3 * rise + lines * takes + takes
    ready: list[Waiting] = []
    running: dict[Running, int] = {}
    came: dict[Waiting, tuple[int, int]] = {}
    host = Host("w", 0, an_offer(slots=slots, code=CODE))
    for now in range(100_000):
        if now < len(arrivals):
            ready.append(stage(now, *arrivals[now]))
            ahead = sum((one.owner, one.priority) == arrivals[now] for one in ready)
            came[ready[-1]] = now, ahead
        elif not ready:
            break
        running = {one: until for one, until in running.items() if until > now}
        for action in scheduler.decide(Snapshot(tuple(ready), (), tuple(running), (host,)), now):
            assert isinstance(action, Give)
            ready.remove(action.stage)
            running[Running(action.stage.stage_id, 1, 0, worker="w", owner=action.stage.owner)] = now + takes
            at, ahead = came[action.stage]
            assert now - at <= ahead * bound
        assert len(running) <= slots
        assert not ready or len(running) == slots, "no slot is left free while something waits"
    assert not ready
