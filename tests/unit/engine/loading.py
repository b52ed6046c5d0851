"""Which modules of ours a stage loads, told by a process in which none is loaded before."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from pathlib import Path

from tests.unit.engine import processes  # noqa: F401 - its server has loaded what our modules take from others


def loaded_by(task: Path) -> set[str]:
    """Of the stage with this settings file, which is run. Forked from a process that had ours, it forgets them."""
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=[task])
    process.start()
    process.join()
    assert process.exitcode == 0
    return set(json.loads(task.with_suffix(".loaded").read_text()))


def _ours() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "allo_engine"]


def _run(task: Path) -> None:
    for name in _ours():
        del sys.modules[name]
    importlib.import_module("torch").set_num_threads(1)
    engine = importlib.import_module("allo_engine.__main__")
    status = engine.main([json.loads(task.read_text())["stage"], "--config", str(task)])
    task.with_suffix(".loaded").write_text(json.dumps(_ours()))
    sys.exit(status)
