"""How a process begins, and how one that cannot ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, refusals


@pytest.mark.parametrize("process", ["worker", "service.server"])
def test_a_process_with_wrong_settings_ends_with_a_line_that_says_what_is_wrong(process: str) -> None:
    wrong = {"ALLO_BROKER_URL": "amqp://me:pa55word@host/0", "ALLO_SLOTS": "-1", "ALLO_STORE_URL": "ftp://host/folder"}
    wrong |= {"ALLO_DATABASE_URL": "mysql://me:pa55word@host/name"}
    command = [sys.executable, "-m", process]
    done = subprocess.run(command, env=os.environ | wrong, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "not_started" in line
    assert "ALLO_BROKER_URL: must begin with redis://" in line
    assert "ALLO_SLOTS: " in line
    assert "ALLO_STORE_URL: must be file:///folder, with three slashes, or s3://bucket/prefix" in line
    assert "ALLO_DATABASE_URL: must be postgresql://" in line
    assert "pa55word" not in done.stderr + done.stdout


def test_a_misspelt_setting_is_told_with_what_was_meant() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment({"ALLO_LEASE_SECONDS": "1", "ALLO_DATADIR": "/x", "ALLO_ZZZ": "x"})
    unknown = "there is no such setting."
    assert refusals(refused.value) == [
        f"ALLO_DATADIR: {unknown} Did you mean 'ALLO_DATA_DIR'?",
        f"ALLO_ZZZ: {unknown}",
    ]


def test_times_that_do_not_go_together_are_told_by_their_own_names() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment({"ALLO_LEASE_SECONDS": "1"})
    assert refusals(refused.value) == ["ALLO_LEASE_SECONDS (1) must be more than ALLO_SELF_FENCE_SECONDS (14)."]


def test_bringing_a_database_to_our_tables_is_no_event(tmp_path: Path) -> None:
    program = "import sys; from service import logs, migrating; logs.configure(); migrating.migrate(sys.argv[1])"
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'new.db'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
