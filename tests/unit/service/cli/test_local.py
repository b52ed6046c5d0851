"""What an operator does on the machine itself: in the wrong folder, and with keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.db import Database
from service.jobs.access.keys import find_key


@pytest.mark.parametrize(
    "command", [["keys", "list"], ["keys", "revoke", "key-1"], ["keys", "rotate", "key-1"], ["models", "list"]]
)
def test_what_only_looks_makes_no_database_in_the_wrong_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--data-dir", str(tmp_path / "wrong")]) != 0
    assert "is no service's data folder" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_a_first_key_says_where_it_makes_a_database_and_is_rotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--data-dir", str(tmp_path / "data")]
    assert main(["keys", "create", *folder]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path / 'data'} has no database: a new one is made there." in said.err
    first, note = said.out.splitlines()
    assert main(["keys", "rotate", note[1:].partition(",")[0], *folder]) == 0
    said = capsys.readouterr()
    assert "has no database" not in said.err
    database = Database(f"sqlite:///{tmp_path / 'data' / 'allo.db'}")
    assert find_key(database, said.out.splitlines()[0]) is not None
    assert find_key(database, first) is None
    database.close()


def test_keys_and_models_are_told_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def allo(*arguments: str) -> Any:
        assert main([*arguments, "--json", "--data-dir", str(tmp_path)]) == 0
        return json.loads(capsys.readouterr().out)

    made = allo("keys", "create", "--owner", "alice", "--scopes", "read")
    (listed,) = allo("keys", "list")
    assert (listed["id"], listed["owner"], listed["scopes"], listed["status"]) == (
        made["id"],
        "alice",
        ["read"],
        "valid",
    )
    assert made["secret"].startswith(listed["begins_with"])
    assert allo("keys", "rotate", made["id"])["secret"] != made["secret"]
    assert allo("keys", "revoke", made["id"]) == {"id": made["id"], "deleted": True}
    assert allo("models", "list") == []


@pytest.mark.parametrize("days", ["-1", "0", "nan", "1e9"])
def test_a_key_that_would_never_open_anything_is_not_made(
    days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", f"--days={days}", "--data-dir", str(tmp_path)]) != 0
    assert "more than 0" in capsys.readouterr().err
