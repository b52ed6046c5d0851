"""A claim whose process is gone is known from its file alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.claims import bury, held

HOLDER = """
import sys
from collections.abc import Iterator
from pathlib import Path
from worker.claims import held
with held(Path(sys.argv[1]), "stage-1", 3):
    print("held", flush=True)
    sys.stdin.read()
"""


def buried(data_dir: Path) -> list[tuple[str, int]]:
    lost: list[tuple[str, int]] = []
    bury(data_dir, lambda *claim: lost.append(claim))
    return lost


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_claim_lives_as_long_as_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert buried(tmp_path) == []
    holder.kill()
    holder.wait()
    assert buried(tmp_path) == [("stage-1", 3)]
    assert buried(tmp_path) == []


def test_one_that_could_not_be_told_of_is_told_of_again(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with pytest.raises(ConnectionError):
        bury(tmp_path, _away)
    assert buried(tmp_path) == [("stage-1", 3)]


def _away(stage_id: str, epoch: int) -> None:
    raise ConnectionError(f"nobody to tell of {stage_id} {epoch}")


def test_a_claim_whose_words_a_power_cut_took_holds_up_nobody(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "claims" / "tmpempty").touch(mode=0o600)
    holder.kill()
    holder.wait()
    assert buried(tmp_path) == [("stage-1", 3)]
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_that_ends_well_leaves_nothing_and_no_name_is_a_path(tmp_path: Path) -> None:
    with held(tmp_path, "../../etc/passwd", 1):
        (file,) = (tmp_path / "claims").iterdir()
        assert file.parent == tmp_path / "claims"
        assert file.stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "claims").iterdir()) == []
