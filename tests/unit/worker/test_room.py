"""How long a stage waits on a disk that was full."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.disk import small_disk
from worker.room import free_bytes, wait_for_room


def test_where_there_is_room_again_already_the_stage_is_tried_again_after_a_pause(tmp_path: Path) -> None:
    told: list[str] = []
    assert wait_for_room([tmp_path], 0.1, told.append, ended=lambda: None) is None
    assert len(told) == 1


def test_a_stage_that_is_to_end_for_another_reason_waits_no_longer(tmp_path: Path) -> None:
    assert wait_for_room([tmp_path], 3600, lambda _: None, ended=lambda: "paused") == "paused"


def test_a_disk_that_can_name_no_more_files_has_no_room_and_neither_has_one_that_is_gone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64, files=8) as disk:
        assert free_bytes([disk]) > 2**24
        with suppress(OSError):
            for number in range(9):
                (disk / str(number)).touch()
        assert free_bytes([disk]) == 0
    assert free_bytes([tmp_path / "disk" / "store"]) == 0
