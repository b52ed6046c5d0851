"""Whether a model can be trained: asked of the engine, in a process of its own, so that this one never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.children import alone, last_words
from service.jobs.errors import InvalidRequest

Verdict = dict[str, Any]
"""{packs, reason, shape}: whether rows may hold several sequences, and if not, why; and the model's sizes, or null (see
the engine's model/probe.py)."""


def probed(folder: Path) -> Verdict:
    """What the engine finds of a model in a folder. Raises InvalidRequest where it cannot be trained."""
    command = [sys.executable, "-m", "allo_engine.model", str(folder.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, env=alone(), check=False)
    if done.returncode:
        raise _refused(f"The model could not be probed: {last_words(done.stderr)}")
    found: Verdict = json.loads(done.stdout.splitlines()[-1])
    if "refused" in found:
        raise _refused(found["refused"])
    return found


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, "path", "invalid_model")
