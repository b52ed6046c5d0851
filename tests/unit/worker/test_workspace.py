"""The folders of an attempt: whose they are, what survives it, and what does not."""

import os
import subprocess
import sys
import time

from worker.workspace import open_workspace

DIGEST = "d" * 64


def test_checkpoints_outlive_an_attempt_and_the_rest_does_not(tmp_path):
    with open_workspace(tmp_path, "stage-a", 1, DIGEST) as first:
        (first.work / "checkpoint").write_text("step 7")
        (first.run / "inputs").mkdir()
    with open_workspace(tmp_path, "stage-a", 2, DIGEST) as second:
        assert (second.work / "checkpoint").read_text() == "step 7"
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["stage-a.2"]


def test_two_stages_with_the_same_digest_never_share_a_work_folder_at_once(tmp_path):
    with (
        open_workspace(tmp_path, "stage-a", 1, DIGEST) as one,
        open_workspace(tmp_path, "stage-b", 1, DIGEST) as other,
    ):
        assert one.work != other.work


def test_a_work_folder_is_held_until_the_last_process_of_an_attempt_is_gone(tmp_path):
    with open_workspace(tmp_path, "stage-a", 1, DIGEST) as first:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[first.lock])
    with open_workspace(tmp_path, "stage-b", 1, DIGEST) as second:
        assert second.work != first.work
    process.kill()
    process.wait()
    with open_workspace(tmp_path, "stage-b", 2, DIGEST) as third:
        assert third.work == first.work


def test_checkpoints_that_nobody_came_back_for_are_removed_after_a_week(tmp_path):
    with open_workspace(tmp_path, "stage-a", 1, DIGEST) as old:
        (old.work / "checkpoint").touch()
    os.utime(old.work, (time.time() - 8 * 86400,) * 2)
    with open_workspace(tmp_path, "stage-b", 1, "e" * 64):
        assert not old.work.exists()


def test_a_cut_off_log_gives_its_end(tmp_path):
    with open_workspace(tmp_path, "stage-a", 1, DIGEST) as workspace:
        assert workspace.log_tail() == ""
        workspace.log.write_bytes(b"\xff" * 9000 + b"the end")
        assert workspace.log_tail().endswith("the end")
