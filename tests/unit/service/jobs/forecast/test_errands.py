"""Errands to the engine: one at a time, kept, tried again where they failed, and no owner fills the queue."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from service.jobs.errors import TooMany
from service.jobs.forecast.errands import KEPT, OWN, WAITING, Errands


@dataclass(frozen=True)
class Asked:
    owner: str
    number: int


class Door:
    """What an errand passes, once it is open; who is inside is counted."""

    def __init__(self) -> None:
        self.open, self.runs, self.broken = threading.Event(), list[Asked](), False
        self._inside = threading.Lock()

    def run(self, asked: Asked) -> int:
        assert self._inside.acquire(blocking=False), "two at a time"
        self.open.wait()
        self.runs.append(asked)
        self._inside.release()
        if self.broken:
            raise ValueError("broken")
        return asked.number


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.open.set()


def test_errands_run_one_at_a_time_in_turn_and_the_same_is_run_once(door: Door) -> None:
    errands = Errands(door.run)
    wanted = [Asked(owner, number) for owner in ("a", "b") for number in range(OWN)]
    found = [errands.ask(asked) for asked in (*wanted, *wanted)]
    assert not any(future.done() for future in found)
    door.open.set()
    assert [future.result() for future in found] == [asked.number for asked in (*wanted, *wanted)]
    assert door.runs == wanted


def test_one_owner_takes_no_more_than_a_share_of_the_queue_and_nobody_more_than_all_of_it(door: Door) -> None:
    errands = Errands(door.run)
    for number in range(OWN):
        errands.ask(Asked("a", number))
    with pytest.raises(TooMany):
        errands.ask(Asked("a", OWN))
    errands.ask(Asked("a", 0))  # it is there already
    taken = sum(is_taken(errands, Asked(f"owner-{number}", number)) for number in range(WAITING + 2))
    assert taken in (WAITING - OWN, WAITING - OWN + 1)  # the first errand may have left the queue by then


def is_taken(errands: Errands[Asked, int], asked: Asked) -> bool:
    try:
        errands.ask(asked)
    except TooMany:
        return False
    return True


def test_what_failed_is_run_again_when_it_is_asked_for_again(door: Door) -> None:
    errands, asked, door.broken = Errands(door.run), Asked("a", 7), True
    door.open.set()
    with pytest.raises(ValueError, match="broken"):
        errands.ask(asked).result()
    door.broken = False
    assert errands.ask(asked).result() == 7
    assert errands.ask(asked).result() == 7
    assert len(door.runs) == 2


def test_the_latest_answers_are_kept(door: Door) -> None:
    errands = Errands(door.run)
    door.open.set()
    for number in range(KEPT + 1):
        errands.ask(Asked("a", number)).result()
    errands.ask(Asked("a", KEPT)).result()
    assert len(door.runs) == KEPT + 1
    errands.ask(Asked("a", 0)).result()
    assert len(door.runs) == KEPT + 2
