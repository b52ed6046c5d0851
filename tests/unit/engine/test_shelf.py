"""The shelf of what stages share: it never grows without end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from allo_engine.shelf import Shelf

LARGEST = 40_000


def test_a_shelf_over_its_limit_forgets_the_older_half_and_then_goes_on(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "numbers.db", LARGEST)
    names = {number: number.to_bytes(32) for number in range(200)}
    content = {key: bytes([number]) * 400 for number, key in names.items()}
    held = []
    for start in range(0, 200, 5):
        shelf.write({names[number]: content[names[number]] for number in range(start, start + 5)})
        held.append(len(shelf.read(names)))
    drops = [before - after for before, after in pairwise(held) if after < before]
    assert max(held) >= 50, "a row is 400 bytes and its key"
    assert 2 <= len(drops) <= 10, "not at every write from the first on"
    assert all(drop > 10 for drop in drops)
    known = shelf.read(names)
    assert sorted(known) == list(range(200 - held[-1], 200)), "what is left is the newest"
    assert all(kept == content[names[number]] for number, kept in known.items())
    assert (tmp_path / "numbers.db").stat().st_size < 2 * LARGEST


def test_what_is_on_a_shelf_stays_as_it_was(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "numbers.db")
    assert shelf.read({"one": b"1"}) == {}
    shelf.write({b"1": b"first"})
    shelf.write({b"1": b"second", b"2": b"other"})
    assert shelf.read({"one": b"1", "two": b"2", "three": b"3"}) == {"one": b"first", "two": b"other"}


def test_a_damaged_shelf_is_an_empty_one(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "numbers.db")
    (tmp_path / "numbers.db").write_bytes(b"not a database at all, and long enough to be looked at" * 100)
    assert shelf.read({"one": b"1"}) == {}
    shelf.write({b"1": b"first"})
    assert shelf.read({"one": b"1"}) == {"one": b"first"}
