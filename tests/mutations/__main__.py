"""python -m tests.mutations [NAME…]: takes each fence away, or those named, and demands that its test goes red.

First every test must be green in an untouched copy. A test that hangs without its fence is red too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.fences import FENCES, Fence

_ROOT = Path(__file__).parents[2]
_COPIED = ("service", "worker", "allo_engine", "migrations", "tests", "pyproject.toml")
_HURRIED = (
    ("tests/waiting.py", r"^PATIENCE = [\d.]+$", "PATIENCE = 20.0"),
    ("tests/unit/conftest.py", r'("any pace", deadline=None)', r'\1, phases=["explicit", "generate"]'),
)
"""In the copy nobody waits long for what never comes, nor looks for the smallest world in which it does not."""

_SECONDS, _ALL_SECONDS = 120, 1800
_GREEN, _RED = 0, 1
"""Of pytest's exit statuses, the two that say what came of tests; any other is an error of ours."""


def main(names: Sequence[str]) -> int:
    fences = [fence for fence in FENCES if not names or fence.name in names]
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder)
        _copied(copy)
        wrong = [f"{fence.name}: {told}" for fence in fences if (told := _misplaced(copy, fence))]
        if wrong:
            return _failed("the table does not fit the code", wrong)
        if _tried(copy, sorted({fence.test for fence in fences}), _ALL_SECONDS) != _GREEN:
            return _failed("tests are red with every fence in its place", [])
        held = [fence.name for fence in fences if not _goes_red(copy, fence)]
    return _failed("nothing went red", held) if held else 0


def _copied(copy: Path) -> None:
    for name in _COPIED:
        source = _ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for path, pattern, instead in _HURRIED:
        text, found = re.subn(pattern, instead, (copy / path).read_text(), flags=re.MULTILINE)
        assert found == 1, f"{path} has no {pattern}"
        (copy / path).write_text(text)


def _misplaced(copy: Path, fence: Fence) -> str | None:
    times = (copy / fence.path).read_text().count(fence.text)
    return None if times == 1 else f"{fence.path} has its text {times} times: {fence.text!r}"


def _goes_red(copy: Path, fence: Fence) -> bool:
    path, began = copy / fence.path, time.monotonic()
    whole = path.read_text()
    path.write_text(whole.replace(fence.text, fence.without))
    try:
        status = _tried(copy, [fence.test], _SECONDS)
    finally:
        path.write_text(whole)
    said = {_GREEN: "GREEN", _RED: "red", None: "red (it hangs)"}.get(status, f"BROKEN ({status})")
    print(f"{said:15} {time.monotonic() - began:4.0f} s  {fence.name}  →  {fence.test}", flush=True)
    return said.startswith("red")


def _tried(copy: Path, tests: Sequence[str], seconds: float) -> int | None:
    """Pytest's exit status, on SQLite alone; None where it took too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not postgresql", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
        if status not in (_GREEN, _RED) or (status == _RED and len(tests) > 1):
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
        return status


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(why: str, which: Sequence[str]) -> int:
    print("\n  ".join([f"{why}:" if which else why, *which]), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
