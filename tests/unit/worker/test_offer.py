"""What a worker says that it has, and how it is called."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from allo_engine.pipeline import stage_codes
from allo_engine.source import code_version
from service.settings import Settings
from worker.offer import host_bytes, offer, worker_id


def test_slots_are_as_many_as_devices_unless_told_otherwise(tmp_path: Path) -> None:
    assert offer(Settings(data_dir=tmp_path, devices="0=24,1=24,2=24")).slots == 3
    assert offer(Settings(data_dir=tmp_path, devices="0=24,1=24", slots=5)).slots == 5


def test_a_worker_has_its_code_and_what_is_installed(tmp_path: Path) -> None:
    found = offer(Settings(data_dir=tmp_path))
    assert (found.code, set(found.runs)) == (code_version(), stage_codes())
    assert found.packages["bitsandbytes"] == metadata.version("bitsandbytes")
    assert found.cores >= 1
    assert 0 < found.host_bytes <= psutil.virtual_memory().total


def test_telling_what_is_installed_imports_nothing() -> None:
    code = "import sys, worker.offer as o; from service.settings import Settings; o.offer(Settings()); "
    code += "sys.exit(bool({'torch', 'bitsandbytes', 'vllm', 'deepspeed', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert host_bytes(tmp_path) == total
    for limit, found in (("max\n", total), ("1073741824\n", 2**30), (f"{2 * total}\n", total)):
        (tmp_path / "memory.max").write_text(limit)
        assert host_bytes(tmp_path) == found


def test_a_worker_keeps_its_name_and_each_folder_has_its_own(tmp_path: Path) -> None:
    first, second = (Settings(data_dir=tmp_path / name) for name in ("first", "second"))
    assert worker_id(first) == worker_id(Settings(data_dir=tmp_path / "first"))
    assert worker_id(first) != worker_id(second)
