"""Checkpoint folders that another library writes: taken up only where they are whole, and what we wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from allo_engine.report import Report
from allo_engine.training.resuming import sha256_of, synced

_SEAL = "sealed.json"


def seal(folder: Path) -> None:
    """Sync a folder's files and, behind them all, note the sha256 of each."""
    digests = {str(path.relative_to(folder)): synced(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    aside = folder / "sealed.tmp"
    aside.write_text(json.dumps(digests))
    synced(aside)
    aside.replace(folder / _SEAL)


def newest_sealed(work: Path, report: Report) -> Path | None:
    """The newest of a work folder's checkpoint-<step> whose files are what its seal says; the others go."""
    for folder in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        if _is_whole(folder):
            return folder
        shutil.rmtree(folder)
        report.message(f"Checkpoint {folder.name} is not whole and was passed over.", level="warn")
    return None


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _is_whole(folder: Path) -> bool:
    if not (folder / _SEAL).exists():
        return False
    digests: dict[str, str] = json.loads((folder / _SEAL).read_text())
    return all((folder / name).exists() and sha256_of(folder / name) == sha256 for name, sha256 in digests.items())
