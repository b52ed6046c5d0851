"""The gate of a process in which many threads want to go to the database at once."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from service.gate import Bounded, DatabaseBusy
from tests.clock import Clock


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("gone"), connection_invalidated=True)


def locked() -> OperationalError:
    return OperationalError("BEGIN IMMEDIATE", {}, sqlite3.OperationalError("database is locked"))


def test_one_writer_too_many_is_refused_at_once_and_readers_are_not() -> None:
    gate = Bounded(writers=2)
    with gate.writer(), gate.writer():
        with pytest.raises(DatabaseBusy), gate.writer():
            pass
        with gate.reader():
            pass
    with gate.writer():
        pass


def test_a_writer_that_fails_gives_its_place_back() -> None:
    gate = Bounded(writers=1)
    with pytest.raises(OperationalError), gate.writer():
        raise locked()
    with gate.writer():
        pass


def test_while_the_database_is_away_one_asks_for_all() -> None:
    clock = Clock(100.0)
    gate = Bounded(writers=2, clock=clock)
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
    gate = Bounded(writers=2)
    with pytest.raises(OperationalError), gate.writer():
        raise locked()
    with gate.reader():
        pass
