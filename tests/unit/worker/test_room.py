"""How long a stage waits on a disk that was full."""

from __future__ import annotations

from pathlib import Path

from worker.room import wait_for_room


def test_where_there_is_room_again_already_the_stage_is_tried_again_after_a_pause(tmp_path: Path) -> None:
    told: list[str] = []
    assert wait_for_room([tmp_path], 0.1, told.append, ended=lambda: None) is None
    assert len(told) == 1


def test_a_stage_that_is_to_end_for_another_reason_waits_no_longer(tmp_path: Path) -> None:
    assert wait_for_room([tmp_path], 3600, lambda _: None, ended=lambda: "paused") == "paused"
