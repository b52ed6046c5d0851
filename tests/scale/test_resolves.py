"""pip finds releases of everything that fit together, for GPUs and for a CPU, and the locks name them all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OFFLINE = re.compile("Retrying|connection|name resolution")
"""In what pip says where it reaches no index."""


@pytest.mark.parametrize("extra", ["scale", "scale-cpu"])
def test_the_extra_resolves_to_its_lock(extra: str, tmp_path: Path) -> None:
    lock, report = ROOT / f"constraints-{extra}.txt", tmp_path / "report.json"
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--retries", "1"]
    told = ["--quiet", "--constraint", str(lock), "--report", str(report), f"{ROOT}[{extra}]"]
    answer = subprocess.run([*asked, *told], capture_output=True, text=True)
    if "ResolutionImpossible" not in answer.stderr and OFFLINE.search(answer.stderr):
        pytest.skip("no package index answers: whether the extra resolves is not known here")
    assert answer.returncode == 0, answer.stderr
    found = {_name(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]}
    assert {"allo", "deepspeed", "trl", extra.replace("scale", "vllm")} <= found
    assert found - _pinned(lock) == {"allo"}


def _pinned(lock: Path) -> set[str]:
    return {_name(line.split("==")[0]) for line in lock.read_text().splitlines() if not line.startswith("#")}


def _name(name: str) -> str:
    """As the index compares names (PEP 503)."""
    return re.sub("[-_.]+", "-", name).lower()
