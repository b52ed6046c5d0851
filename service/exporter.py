"""Makes what models are asked for in other forms, one after the other, in a process beside the API.

`python -m service.exporter` takes what is queued, the oldest first, and ends when nothing is left. It holds a lock
while it lives, by which the API tells whether there is one. It ends with the API, and the next one begins anew what it
left undone.
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

from service.children import alone, last_words
from service.db import Database
from service.jobs.registry import exports
from service.jobs.tables import Export
from service.settings import Settings
from service.starting import settings_or_end
from service.storage import open_store
from service.storage.store import Store, StoreError


def ensure(settings: Settings) -> None:
    """Sees to it that somebody takes what is queued."""
    with _alone(settings) as nobody:
        if not nobody:
            return
    log = settings.data_dir / "logs" / "exports.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.exporter"],
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


def main() -> None:
    settings = settings_or_end()
    database, store = Database(settings.database), open_store(settings.store, settings.s3)
    with _alone(settings) as ours:
        while ours and (row := exports.begin(database)) is not None:
            _make(settings, database, store, row)
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
            exports.fail(database, row.id, code, last_words(done.stderr))
        else:
            exports.finish(database, row.id, _stored(store, folder / "out"), json.loads(done.stdout.splitlines()[-1]))
    except (OSError, StoreError) as error:
        exports.fail(
            database,
            row.id,
            "export_failed",
            f"The export could not be read or written: {getattr(error, 'strerror', error)}.",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _engine(row: Export, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "allo_engine.exports", row.format, str(folder / "model"), str(folder / "out")]
    command += [f"--base={folder / 'base'}"] if "base" in row.inputs else []
    command += [f"--{name}={value}" for name, value in row.options.items()]
    return subprocess.run(command, capture_output=True, text=True, env=alone(TQDM_DISABLE="1"), check=False)


def _stored(store: Store, out: Path) -> list[dict[str, object]]:
    blobs = {path.name: store.take(path) for path in sorted(out.iterdir())}
    return [{"path": name, "bytes": blob.size, "sha256": blob.sha256} for name, blob in blobs.items()]


@contextmanager
def _alone(settings: Settings) -> Iterator[bool]:
    """Whether this process is the only one that makes exports, as long as the block lasts."""
    folder = settings.data_dir / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False


def _end_with_the_starter() -> None:
    """When the pipe ends, so does this session: the engine is one of its processes."""
    sys.stdin.buffer.read()
    os.killpg(0, 9)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    main()
