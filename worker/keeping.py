"""Copies a running stage's checkpoints to the store, so that another host can go on from them.

A thread of its own does it: neither the stage nor its beat waits for it, however slow the store is. It has the priority
of all others: one that waits for the processor while it holds the interpreter, or SQLite's write lock, holds up every
beat. What has not changed since the last copy is not copied again. Whatever goes wrong is said, costs nothing else, and
is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from allo_engine.resumable import CHECKPOINT
from service.db import Database
from service.jobs.running import keeping
from service.jobs.running.attempts import Claim
from service.jobs.running.keeping import Kept
from service.storage.checksums import counted, read_file
from service.storage.store import Blob, Corrupt, Store
from worker.workspace import Workspace

log = logging.getLogger(__name__)

_SHARE = 10
"""A copy is made after ten times as long as the last one took."""

Mark = tuple[int, int, int]


class Pace:
    """When to copy: each so many seconds, but so seldom that it takes a tenth of the time at most."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = 0.0

    def wait(self) -> float:
        """Seconds until the next copy may begin."""
        return max(0.0, self._next - self._clock())

    def took(self, began: float) -> float:
        """Note a copy, or the attempt to make one, that ends now; the seconds that it took."""
        cost = self._clock() - began
        self._next = self._clock() + max(self._seconds, _SHARE * cost)
        return cost


class Keeper:
    """Keeps what it `saw` of one attempt, from `with` to its end. `tell` takes a warning for the job's owner; it
    `hurries` while somebody waits for the last one."""

    def __init__(
        self,
        database: Database,
        store: Store,
        claim: Claim,
        workspace: Workspace,
        seconds: float,
        tell: Callable[[str], object],
    ) -> None:
        self._database, self._store, self._claim, self._workspace = database, store, claim, workspace
        self._pace, self._tell, self._on = Pace(seconds), tell, seconds > 0
        self._newest = self._kept = -1
        self._known: dict[str, tuple[Mark, Blob]] = {}
        files = [file for one in claim.kept for file in one.files]
        self._checkpoints = {sha256 for path, sha256, _ in files if CHECKPOINT.fullmatch(Path(path).name)}
        self._due, self._idle = threading.Event(), threading.Event()
        self.hurries = self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"keeper of {claim.stage_id}", daemon=True)

    def saw(self, step: int) -> None:
        """There is a checkpoint behind this step."""
        self._workspace.reach(step)
        self._newest = step
        self._due.set()

    def last(self, seconds: float) -> None:
        """Keep the newest checkpoint, behind which nothing more comes, if that takes no longer than this."""
        if self._on:
            self._idle.clear()
            self.hurries = True
            self._due.set()
            self._idle.wait(seconds)

    def forget(self) -> None:
        """Remove what is kept of a stage that has succeeded: an hour of short stages would else fill a disk before the
        sweep."""
        try:
            for sha256 in keeping.unheld(self._database, self._checkpoints) if self._checkpoints else ():
                self._store.delete(sha256)
        except Exception as error:  # the sweep removes it
            log.warning("forgetting_failed stage_id=%s error=%r", self._claim.stage_id, error)

    def __enter__(self) -> Keeper:
        if self._on:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._due.set()  # it ends behind the file that it is at: who waits for a store that hangs, hangs too

    def _run(self) -> None:
        while not self._ended:
            hurries = self.hurries  # as it is now: a copy that is under way when it is asked for may be an older one's
            if self._newest > self._kept and (hurries or not self._pace.wait()):
                self._keep(self._newest)
            if hurries:
                self.hurries = False
                self._idle.set()
            self._due.wait(self._pace.wait() if self._newest > self._kept else None)
            self._due.clear()

    def _keep(self, step: int) -> None:
        began, name = time.monotonic(), (self._claim.stage_id, self._claim.epoch)
        try:
            files = tuple(self._copied())
            done = not self._ended and self._named(Kept(step, files))
        except Exception as error:  # whatever the store, the disk or the database has against it, the stage goes on
            log.warning("keeping_failed stage_id=%s epoch=%s step=%s error=%r", *name, step, error)
            if not self._ended:
                self._tell("A checkpoint could not be copied to the store; training goes on, and it is tried again.")
            done = False
        seconds = self._pace.took(began)
        if done:
            self._kept = step
            size = sum(size for _, _, size in files)
            log.info("checkpoint_kept stage_id=%s epoch=%s step=%s bytes=%s seconds=%.3f", *name, step, size, seconds)

    def _copied(self) -> Iterator[tuple[str, str, int]]:
        with self._workspace.snapshot() as files:
            for path, file in files.items():
                if self._ended:
                    return
                blob = self._blob(path, file)
                yield path, blob.sha256, blob.size

    def _blob(self, path: str, file: Path) -> Blob:
        """A file's content, in the store; raises Corrupt where it is not what a checkpoint's name says."""
        known, found, mark = self._known.get(path), None, _mark(file)
        if known is not None and known[0] == mark:
            return known[1]
        named = CHECKPOINT.fullmatch(file.name)
        if named is None:
            found, _ = counted(read_file(file))
        elif self._store.exists(named["sha256"]):
            found = Blob(named["sha256"], file.stat().st_size)
        if found is None or not self._store.exists(found.sha256):
            found = self._store.take(file) if named else self._store.put(file)  # only a checkpoint is never written to
        if named and named["sha256"] != found.sha256:
            raise Corrupt(named["sha256"])
        if named:
            self._checkpoints.add(found.sha256)
        elif mark != _mark(file) and file.suffix != ".jsonl":  # of lines that are only added to, any number will do
            raise BlockingIOError(f"{path} was written to while it was copied")
        self._known[path] = (_mark(file), found)
        return found

    def _named(self, checkpoint: Kept) -> bool:
        """Name it in the database; and remove what its predecessor's predecessor alone needed, or each checkpoint would
        lie there until the next sweep."""
        claim = self._claim
        over = keeping.keep(self._database, claim.stage_id, claim.epoch, claim.work, checkpoint)
        for sha256 in (over or set()) & self._checkpoints:  # all else may be another stage's at any moment
            self._store.delete(sha256)
        return over is not None


def _mark(file: Path) -> Mark:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
