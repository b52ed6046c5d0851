"""Stands for the engine: it speaks its protocol and keeps checkpoints that it verifies, and loads no model.

    python -m service.chaos.trainer STAGE --config stage.json

What it makes is a function of its inputs alone, so that a stage which was resumed must equal one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from allo_engine.full import disk_is_full
from allo_engine.report import Report

STEPS, STEP_SECONDS = 12, 0.08
_STOPPED = 75  # EX_TEMPFAIL: it ended at a checkpoint

State = tuple[int, str]


def main(arguments: list[str]) -> int:
    """Train one stage."""
    stage = json.loads(Path(arguments[-1]).read_text(encoding="utf-8"))
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    report = Report(sys.stdout)
    try:
        return _trained(stage, report, stopping)
    except OSError as error:
        if disk_is_full(error):
            report.error("disk_full", str(error))
            return 1
        raise


def _trained(stage: dict[str, Any], report: Report, stopping: list[bool]) -> int:
    checkpoint = Path(stage["work"]) / "checkpoint.json"
    step, digest = _resumed(checkpoint) or (0, _beginning(stage))
    while step < STEPS:
        time.sleep(STEP_SECONDS)
        step, digest = step + 1, hashlib.sha256(digest.encode()).hexdigest()
        _save(checkpoint, (step, digest))
        report.checkpoint(step)
        report.progress(step, STEPS, {"loss": 1 / step})
        if stopping:
            return _STOPPED
    for output in ("checkpoint", "report"):
        folder = Path(stage["outputs"]) / output
        folder.mkdir()
        (folder / "weights.json").write_text(digest, encoding="utf-8")
    report.result({"loss": 1 / STEPS})
    return 0


def _beginning(stage: dict[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(stage["config"], sort_keys=True).encode())
    for folder in sorted(stage["inputs"]):
        for path in sorted(Path(stage["inputs"][folder]).rglob("*")):
            if path.is_file() and folder != "cache":
                total.update(path.read_bytes())
    return total.hexdigest()


def _resumed(path: Path) -> State | None:
    """What a checkpoint holds; None where there is none, or it is damaged."""
    try:
        saved = json.loads(path.read_bytes())
        state = (int(saved["step"]), str(saved["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if saved.get("check") == _check(state) else None


def _save(path: Path, state: State) -> None:
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        json.dump({"step": state[0], "digest": state[1], "check": _check(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _check(state: State) -> str:
    return hashlib.sha256(f"{state[0]} {state[1]}".encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
