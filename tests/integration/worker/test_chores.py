"""Whoever leads erases, and nobody else."""

from __future__ import annotations

from service.jobs.data.erasing import Eraser, Keeping
from tests.integration.worker.house import House
from tests.waiting import until
from worker.chores import Chores


def test_the_leader_erases_what_nobody_holds(house: House) -> None:
    held = {blob.sha256 for blob in house.store.stored()}
    blob = house.store.put_stream([b"nobody's"])
    seconds = iter(range(0, 10**9, 100))
    eraser = Eraser(house.database, house.store, Keeping(100, 1e9, 1e9), lambda: next(seconds))
    chores = Chores(every=0.01)
    chores.add("erasing", eraser.look)
    assert next(seconds) == 0, "nobody has looked"
    chores.tell(True)
    until(lambda: not house.store.exists(blob.sha256))
    chores.tell(False)
    assert {blob.sha256 for blob in house.store.stored()} == held
