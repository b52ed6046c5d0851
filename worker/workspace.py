"""The folders of one attempt: inputs and outputs of its own, and the resume checkpoints it inherits.

    <data>/runs/<stage>.<epoch>/   inputs/, outputs/, stage.json: of this attempt alone, removed at its end
    <data>/work/<name>/            resume checkpoints: they outlive an attempt and serve the next one of the same name
    <data>/cache/                  log-probabilities and answers that stages share; may be removed at any time
    <data>/logs/<stage>.<epoch>.log

A work folder has one user at a time: its lock is handed down to the supervisor, so that it is held until the last
process of an attempt is gone, whatever became of the runner.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo_engine.checkpoints.merging import DESCRIBED, Recipe
from service.storage.store import Blob, Store

Files = Mapping[str, Sequence[tuple[str, str, int]]]
"""Each input's files: (relative path, sha256, bytes)."""

_TAIL_BYTES = 4000
_KEEP_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Workspace:
    """Where one attempt reads and writes. `lock` is the file descriptor that holds the work folder."""

    run: Path
    work: Path
    cache: Path
    log: Path
    lock: int

    @property
    def stage_file(self) -> Path:
        return self.run / "stage.json"

    @property
    def outputs(self) -> Path:
        return self.run / "outputs"

    def resumes(self) -> bool:
        """Whether an earlier attempt left something to go on from."""
        return any(self.work.iterdir())

    def materialise(self, store: Store, name: str, config: Mapping[str, Any], files: Files) -> Iterator[str]:
        """Put every input file in its place, then write the engine's instructions; yields each file as it is done."""
        for source, contents in files.items():
            (self.run / "inputs" / source).mkdir(parents=True)
            for path, sha256, _ in contents:
                store.fetch(sha256, self.run / "inputs" / source / path)
                yield path
        self.outputs.mkdir()
        self.stage_file.write_text(json.dumps(self._instructions(name, config, files)))

    def _instructions(self, name: str, config: Mapping[str, Any], files: Files) -> dict[str, Any]:
        inputs = {source: str(self.run / "inputs" / source) for source in files} | {"cache": str(self.cache)}
        return {
            "stage": name,
            "config": config,
            "inputs": inputs,
            "outputs": str(self.outputs),
            "work": str(self.work),
        }

    def publish(self, store: Store, proceed: Callable[[], bool]) -> list[tuple[str, str, str, int]]:
        """Store every output file; each as (output, relative path, sha256, bytes). Ends early unless `proceed()`.

        What a stage only described is named by its recipe.
        """
        published = []
        for path in sorted(self.outputs.rglob("*")):
            if path.is_file() and not path.is_symlink() and proceed():
                output, _, relative = path.relative_to(self.outputs).as_posix().partition("/")
                if relative == DESCRIBED:
                    published += [(output, *file) for file in _derived(store, path)]
                else:
                    blob = store.take(path)  # the processes that wrote it are gone
                    published.append((output, relative, blob.sha256, blob.size))
        return published

    def log_tail(self) -> str:
        """The end of what the engine wrote to its standard error."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def forget_work(self) -> None:
        """Remove the resume checkpoints: nobody will resume this stage."""
        shutil.rmtree(self.work, ignore_errors=True)


def _derived(store: Store, described: Path) -> Iterator[tuple[str, str, int]]:
    for file in json.loads(described.read_text(encoding="utf-8")):
        blob = Blob(file["sha256"], file["bytes"])
        store.derive(blob, Recipe.of(file))
        yield file["path"], blob.sha256, blob.size


@contextmanager
def open_workspace(data_dir: Path, stage_id: str, epoch: int, name: str) -> Iterator[Workspace]:
    """The folders of one attempt, without what earlier attempts of the stage left there."""
    for folder in ("runs", "work", "logs"):
        (data_dir / folder).mkdir(parents=True, exist_ok=True)
    _prune(data_dir / "work")
    for leftover in (data_dir / "runs").glob(f"{stage_id}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    run = data_dir / "runs" / f"{stage_id}.{epoch}"
    run.mkdir()
    work, lock = _lock_work(data_dir / "work", stage_id, name)
    try:
        yield Workspace(run, work, data_dir / "cache", data_dir / "logs" / f"{stage_id}.{epoch}.log", lock)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        os.close(lock)


def _prune(folder: Path) -> None:
    """Remove the checkpoints that nobody came back for: of jobs that failed and were not retried."""
    for work in folder.iterdir():
        if time.time() - work.stat().st_mtime > _KEEP_SECONDS:
            lock = _lock_folder(work)
            if lock is not None:
                shutil.rmtree(work, ignore_errors=True)
                os.close(lock)


def _lock_work(folder: Path, stage_id: str, name: str) -> tuple[Path, int]:
    """The work folder of this name, or one of the stage's own while another stage makes the very same result."""
    for work in (folder / name, folder / f"{name}.{stage_id}"):
        lock = _lock_folder(work)
        if lock is not None:
            return work, lock
    raise BlockingIOError(f"{folder / name} is in use by an earlier attempt of {stage_id}")


def _lock_folder(folder: Path) -> int | None:
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor)):
        return descriptor
    os.close(descriptor)  # its last user removed it in between
    return _lock_folder(folder)
