"""The system that is broken on purpose is gone when it is over, also where it never came about."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from service.chaos.system import System


@pytest.mark.parametrize("part", ["broker", "api"])
def test_a_system_that_does_not_start_leaves_no_disk_and_no_process(tmp_path: Path, part: str) -> None:
    (tmp_path / f"{part}.log").mkdir()
    with pytest.raises(IsADirectoryError), System(tmp_path):
        pass
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not [process for process in psutil.process_iter(["cmdline"]) if _is_of(process, tmp_path)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in argument for argument in process.info["cmdline"] or ())
