"""What of a work folder another machine needs."""

from __future__ import annotations

from pathlib import Path

from allo_engine.resumable import resumable


def checkpoint(step: int) -> str:
    return f"step-{step:08d}-{step:064x}.safetensors"


def test_the_newest_checkpoint_comes_first_and_what_passes_is_left_out(tmp_path: Path) -> None:
    needed = ["logps.db", "mask/own.safetensors", "ranks/1/responses.jsonl", "rows.json"]
    series = [f"best/{checkpoint(3)}", f"best/{checkpoint(5)}", f"last/{checkpoint(4)}", f"last/{checkpoint(6)}"]
    passing = [
        checkpoint(6),
        "checkpoint.tmp",
        "logps.db-journal",
        "merged/model.safetensors",
        "mask/aside/own.safetensors",
    ]
    passing += [".reached", "meeting-x1/meeting", "ranks/1/outputs/report.json", f"trl/{checkpoint(2)}"]
    for path in [checkpoint(7), f"trl/{checkpoint(8)}", *needed, *series, *passing]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = [path.as_posix() for path in resumable(tmp_path)]
    assert sorted(found) == sorted([checkpoint(7), f"trl/{checkpoint(8)}", *needed, *series])
    assert found[-len(needed) :] == needed
