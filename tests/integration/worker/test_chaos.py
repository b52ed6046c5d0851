"""A few trials of `allo chaos` as its user runs them: nothing that is done to the system breaks a rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from service.chaos.history import read


def test_a_system_that_is_broken_on_purpose_breaks_no_rule(tmp_path: Path) -> None:
    folder = tmp_path / "chaos"
    command = [sys.executable, "-m", "service.cli", "chaos", "--trials", "2", "--seed", "7", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["trials"], summary["violations"]) == (2, {})
    history = list(read(folder / "history.jsonl"))
    assert sum(line["did"] == "trial" for line in history) == 2
    ended = [line for line in history if line["who"] == "database" and line["did"] == "job"]
    accepted = {line["job"] for line in history if line["did"] == "submit" and line["status"] == 200}
    assert len(accepted) == 6, "the visitor said again what got no answer"
    assert accepted <= {line["job"] for line in ended}
    assert any(line["did"] == "artifact" for line in history)
