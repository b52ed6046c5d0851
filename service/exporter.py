"""Makes one export in a process beside the API: `python -m service.exporter ID`.

Each holds its own lock while it lives, so that whoever asks for an export can tell whether somebody still makes it, and
all share another, so that one after the other is made. It ends with the process that started it, and what it left
half done is begun anew when it is asked for again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.db import Database
from service.jobs import exports
from service.jobs.tables import Export
from service.settings import Settings
from service.storage import open_store
from service.storage.store import Store, StoreError


def ensure(settings: Settings, export_id: str) -> None:
    """Sees to it that somebody makes the export."""
    with _locked(settings, export_id, wait=False) as free:
        if not free:
            return
    log = settings.data_dir / "logs" / f"export.{export_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.exporter", export_id],
            env={**os.environ, **settings.to_environment()},
            stdin=subprocess.PIPE,  # it is told by this pipe's end that we are gone
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    threading.Thread(target=_attend, args=(process,), daemon=True, name="export").start()


def _attend(process: subprocess.Popen[bytes]) -> None:
    """Holds the pipe until the process has ended by itself."""
    with process:
        process.wait()


def main(export_id: str) -> None:
    settings = Settings.from_environment()
    database = Database(settings.database)
    with _locked(settings, export_id, wait=False) as ours:
        if ours:
            with _locked(settings, "one-at-a-time", wait=True):
                row = exports.begin(database, export_id)
                if row is not None:
                    _make(settings, database, open_store(settings.store), row)
    database.close()


def _make(settings: Settings, database: Database, store: Store, row: Export) -> None:
    folder = settings.data_dir / "exports" / row.id
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt left
    try:
        for name, files in row.inputs.items():
            for path, sha256 in files:
                store.fetch(sha256, folder / name / path)
        done = _engine(row, folder)
        if done.returncode:
            code = exports.REFUSED if done.returncode == 2 else "export_failed"
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            exports.fail(database, row.id, code, last)
        else:
            exports.finish(database, row.id, _stored(store, folder / "out"), json.loads(done.stdout.splitlines()[-1]))
    except (OSError, StoreError) as error:
        exports.fail(database, row.id, "export_failed", f"The export could not be read or written: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _engine(row: Export, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "allo_engine.exports", row.format, str(folder / "model"), str(folder / "out")]
    command += [f"--base={folder / 'base'}"] if "base" in row.inputs else []
    command += [f"--{name}={value}" for name, value in row.options.items()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _stored(store: Store, out: Path) -> list[dict[str, object]]:
    blobs = {path.name: store.take(path) for path in sorted(out.iterdir())}
    return [{"path": name, "bytes": blob.size, "sha256": blob.sha256} for name, blob in blobs.items()]


@contextmanager
def _locked(settings: Settings, name: str, wait: bool) -> Iterator[bool]:
    """Whether the lock of this name is held for the block; it is, where it is waited for."""
    folder = settings.data_dir / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("wb") as lock:
        yield _taken(lock, wait)


def _taken(lock: IO[bytes], wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _end_with_the_starter() -> None:
    """When the pipe ends, so does this session: the engine is one of its processes."""
    sys.stdin.buffer.read()
    os.killpg(0, 9)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    main(sys.argv[1])
