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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from allo_engine.checkpoints.recipe import DESCRIBED, Recipe
from allo_engine.put import put
from allo_engine.resumable import CHECKPOINT, resumable
from allo_engine.source import stage_code
from service.jobs.running.keeping import Kept
from service.storage.checksums import verified
from service.storage.store import Blob, Store

Files = Mapping[str, Sequence[tuple[str, str, int]]]
"""Each input's files: (relative path, sha256, bytes)."""

_TAIL_BYTES = 4000
_REACHED = ".reached"
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

    @property
    def reached(self) -> int:
        """The step of the stage's own count behind which there is a checkpoint here; -1 where nobody has said so."""
        return _reached(self.work)

    def reach(self, step: int) -> None:
        """Note that there is one; where the disk has no room for that, an older note stays."""
        with suppress(OSError):
            aside = self.work / f"{_REACHED}.new"
            aside.write_text(str(step))
            aside.replace(self.work / _REACHED)

    def resumes(self) -> bool:
        """Whether an earlier attempt left something to go on from, here or in the store."""
        return any(not path.name.startswith(".") for path in self.work.iterdir())

    @contextmanager
    def snapshot(self) -> Iterator[dict[str, Path]]:
        """What another host needs to go on from here, by its path in the work folder: as it is at this moment, whatever
        the engine removes or replaces meanwhile."""
        with TemporaryDirectory(prefix="keeping-", dir=self.run, ignore_cleanup_errors=True) as folder:
            yield _at_once(self.work, Path(folder))

    def take_up(self, store: Store, checkpoint: Kept) -> Iterator[str]:
        """Have a checkpoint of the store in the place of all that is in the work folder; yields as each piece comes.
        Raises StoreError, the work folder being as it was, where one of them is not whole."""
        with TemporaryDirectory(prefix="kept-", dir=self.run) as folder:
            for path, sha256, _ in checkpoint.files:
                copied = _inside(Path(folder), path)
                copied.parent.mkdir(parents=True, exist_ok=True)
                with copied.open("xb") as file:  # no link: the engine goes on writing to some of them
                    for chunk in verified(store.open(sha256), sha256):
                        put(file, chunk)
                        yield path
            _empty(self.work)
            for path, _, _ in reversed(checkpoint.files):  # the checkpoint itself comes last
                _inside(self.work, path).parent.mkdir(parents=True, exist_ok=True)
                _inside(Path(folder), path).replace(_inside(self.work, path))
        self.reach(checkpoint.step)

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
            "code": stage_code(name),
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
        for other in _others(self.work):
            _remove_unheld(other)


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
    work, lock = _lock_work(data_dir / "work", stage_id, epoch, name)
    try:
        _catch_up(work)
        yield Workspace(run, work, data_dir / "cache", data_dir / "logs" / f"{stage_id}.{epoch}.log", lock)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        os.close(lock)


def _prune(folder: Path) -> None:
    """Remove the checkpoints that nobody came back for: of jobs that failed and were not retried."""
    for work in folder.iterdir():
        if time.time() - work.stat().st_mtime > _KEEP_SECONDS:
            _remove_unheld(work)


def _remove_unheld(work: Path) -> None:
    lock = _lock_folder(work)
    if lock is not None:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _others(work: Path) -> list[Path]:
    """The other folders of the same work: a stage has one of its own where the first is held."""
    name = work.name.partition(".")[0]
    return [path for path in work.parent.glob(f"{name}*") if path != work]


def _catch_up(work: Path) -> None:
    """Go on from where the furthest of the same work is: a runner that is frozen holds its folder, and no checkpoint of
    it is lost for that. Its engine is gone, and checkpoints are never written to."""
    furthest = max(_others(work), key=_reached, default=work)
    if _reached(furthest) > _reached(work):
        _empty(work)
        try:
            _linked(furthest, work, lambda path: CHECKPOINT.fullmatch(path.name) is not None)  # never written to
            (work / _REACHED).write_text(str(_reached(furthest)))
        except OSError:  # half of it is worse than nothing
            _empty(work)


def _at_once(source: Path, target: Path, tries: int = 3) -> dict[str, Path]:
    try:
        return _linked(source, target, lambda _: True)
    except FileNotFoundError:  # the engine has just removed one
        if tries == 1:
            raise
    _empty(target)
    return _at_once(source, target, tries - 1)


def _linked(source: Path, target: Path, links: Callable[[Path], bool]) -> dict[str, Path]:
    """What is resumable of a work folder, in another folder: linked, or copied where the engine may write to it."""
    found = {}
    for path in resumable(source):
        here = target / path
        here.parent.mkdir(parents=True, exist_ok=True)
        if links(path):
            os.link(source / path, here)
        else:
            shutil.copyfile(source / path, here)
        found[path.as_posix()] = here
    return found


def _reached(work: Path) -> int:
    try:
        return int((work / _REACHED).read_text())
    except (OSError, ValueError):
        return -1


def _empty(work: Path) -> None:
    """What is there, the note of how far it is first."""
    (work / _REACHED).unlink(missing_ok=True)
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _inside(folder: Path, path: str) -> Path:
    """A file's place in a folder; a name never leads out of it."""
    found = folder / path
    if ".." in found.parts or not found.is_relative_to(folder):
        raise ValueError(f"{path!r} is no path inside a work folder")
    return found


def _lock_work(folder: Path, stage_id: str, epoch: int, name: str) -> tuple[Path, int]:
    """The work folder of this name, or one of the stage's own while another stage makes the very same result, or one of
    the attempt's own while an earlier one is frozen."""
    for work in (folder / name, folder / f"{name}.{stage_id}", folder / f"{name}.{stage_id}.{epoch}"):
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
