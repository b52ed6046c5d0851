"""The gate of a process in which many threads want to go to the database at once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import OperationalError

from service.gate import Bounded, DatabaseBusy, Turns
from tests.clock import Clock
from tests.waiting import PATIENCE, until


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("gone"), connection_invalidated=True)


def locked() -> OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return OperationalError("BEGIN IMMEDIATE", {}, error)


def test_one_writer_too_many_is_refused_at_once_and_readers_are_not() -> None:
    gate = Bounded(writers=2, inside=2)
    with gate.writer(), gate.writer():
        with pytest.raises(DatabaseBusy), gate.writer():
            pass
        with gate.reader():
            pass
    with gate.writer():
        pass


def test_a_writer_that_fails_gives_its_place_back() -> None:
    gate = Bounded(writers=1, inside=1)
    with pytest.raises(OperationalError), gate.writer():
        raise locked()
    with gate.writer():
        pass


def test_while_the_database_is_away_one_asks_for_all() -> None:
    clock = Clock(100.0)
    gate = Bounded(writers=2, inside=2, clock=clock)
    with pytest.raises(OperationalError), gate.reader():
        raise away()
    with pytest.raises(DatabaseBusy), gate.reader():
        pass
    clock.now += 10
    with gate.reader(), pytest.raises(DatabaseBusy), gate.reader():
        pass
    with gate.reader():
        pass


def test_a_lock_that_another_program_holds_keeps_no_reader_out() -> None:
    gate = Bounded(writers=2, inside=2)
    with pytest.raises(OperationalError), gate.writer():
        raise locked()
    with gate.reader():
        pass


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    turns, taken = Turns(inside=1), list[int]()

    def take(number: int) -> None:
        assert turns.take(PATIENCE)
        taken.append(number)
        turns.give_back()

    with ThreadPoolExecutor(8) as pool:
        assert turns.take(0)
        for number in range(8):
            pool.submit(take, number)
            until(lambda n=number: turns.waiting == n + 1)
        assert not turns.take(0)
        turns.give_back()
    assert taken == list(range(8))
    assert turns.take(0), "who gave up has left no turn behind"


def test_who_waits_while_another_program_is_found_to_write_is_refused_with_whoever_found_it() -> None:
    clock = Clock(100.0)
    gate = Bounded(writers=2, inside=1, clock=clock)

    def write() -> None:
        with gate.writer():
            pass

    def find_it_locked() -> None:
        with gate.writer():
            until(lambda: gate.turns.waiting)
            clock.now += 5
            raise locked()

    with ThreadPoolExecutor(2) as pool:
        finding, waiting = pool.submit(find_it_locked), pool.submit(write)
        with pytest.raises(OperationalError):
            finding.result()
        with pytest.raises(DatabaseBusy):
            waiting.result()
    with gate.writer():
        pass
