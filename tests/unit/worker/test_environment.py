"""What a stage finds in its environment of the service's variables."""

from __future__ import annotations

import os
import subprocess
import sys

SHOWN = "from worker.starting import engine_environment as e; print(*sorted(k for k in e() if k.startswith('ALLO_')))"


def test_of_the_services_variables_a_stage_gets_the_teachers_key_alone() -> None:
    given = {"ALLO_DATABASE_URL": "postgresql://user:secret@host/db", "ALLO_TEACHER_API_KEY": "key", "ALLO_URL": "x"}
    found = subprocess.run(
        [sys.executable, "-c", SHOWN], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["ALLO_TEACHER_API_KEY"]
