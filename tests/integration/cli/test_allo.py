"""The `allo` command as a person uses it: a real service in a folder, a stub trainer, real signals."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import httpx
import psutil
import pytest

from service.cli import main
from service.cli.terminal import err, out
from service.demo import serving
from tests import asking
from tests.parts import Parts
from tests.tiny import save_tiny
from tests.waiting import PATIENCE, until

STUB = Path(__file__).parents[1] / "worker" / "stub_engine.py"
ALLO = (sys.executable, "-m", "service.cli")
QUICK = {"HEARTBEAT": 0.2, "SELF_FENCE": 8, "LEASE": 10, "REDISPATCH": 3, "DISPATCH": 0.1, "GRACE": 10}


class Place:
    """A data folder, and the `allo up` that may be serving it."""

    def __init__(self, root: Path, **named: str) -> None:
        """`named`: the settings of parts that are not in the folder."""
        self.data, self.control = root / "data", root / "control"
        self.control.mkdir()
        engine = shlex.join([sys.executable, str(STUB), str(self.control)])
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("ALLO_")}
        self.environment |= {"ALLO_DATA_DIR": str(self.data), "ALLO_ENGINE": engine, "COLUMNS": "200"}
        self.environment |= {f"ALLO_{name}_SECONDS": str(seconds) for name, seconds in QUICK.items()}
        self.environment |= {f"ALLO_{name.upper()}": value for name, value in named.items()}
        self.service: subprocess.Popen[str] | None = None

    def up(self, *options: str) -> subprocess.Popen[str]:
        """Start the service and wait until it says where it is."""
        command = [*ALLO, "up", "--port", "0", *options]
        self.service = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.service.stdout
        assert "ready at http://127.0.0.1:" in self.service.stdout.readline()
        return self.service

    def allo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, in this process: to load it takes longer than what it does."""
        said, complaint = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complaint):
            for name, value in self.environment.items():
                patch.setenv(name, value)
            for console in (out, err):  # as wide as this whatever else has run in this process
                patch.setattr(console, "_width", int(self.environment["COLUMNS"]))
                patch.setattr(console, "_height", 50)
            status = main([*arguments])
        return subprocess.CompletedProcess(arguments, status, said.getvalue(), complaint.getvalue())

    def executed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, as a program of its own."""
        command = [*ALLO, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def behave(self, **behaviour: object) -> None:
        told = self.control / "behaviour"
        told.with_suffix(".new").write_text(json.dumps(behaviour))
        told.with_suffix(".new").replace(told)  # a trainer may be looking

    def close(self) -> None:
        if self.service is None:
            return
        if self.service.poll() is None:
            self.service.terminate()
            self.service.wait(PATIENCE)
        if self.service.stdout:
            self.service.stdout.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, parts: Parts) -> Iterator[Place]:
    """A service with a model and a training file, which the tests of this module share."""
    with parts() as named:
        place = Place(tmp_path_factory.mktemp("allo"), **named)
        place.up()
        furnish(place)
        yield place
        place.close()


def furnish(place: Place) -> None:
    save_tiny(place.data.parent / "tiny")
    problem = {"problem": "1 + 1", "solution": "2", "answer": "2"}
    (place.data.parent / "train.jsonl").write_text("".join(json.dumps(problem) + "\n" for _ in range(4)))
    added = place.allo("models", "add", "tiny", str(place.data.parent / "tiny"))
    assert added.returncode == 0, added.stderr
    assert "packed rows" in added.stdout


def submission(place: Place, *options: str) -> tuple[str, ...]:
    return "submit", str(place.data.parent / "train.jsonl"), "--model", "tiny", "--method", "supervised", *options


def submit(place: Place, *options: str) -> subprocess.CompletedProcess[str]:
    return place.allo(*submission(place, *options))


def test_the_first_key_is_kept_for_its_owner_alone(place):
    assert (place.data / "api_key").stat().st_mode & 0o777 == 0o600
    assert (place.data / "url").read_text().startswith("http://127.0.0.1:")


def test_a_job_from_submit_to_a_verified_download(place, tmp_path):
    done = place.executed(*submission(place, "--set", "sft.batch_size=2", "--watch"))
    assert done.returncode == 0, done.stderr
    job = re.search(r"ftjob-\w+", done.stdout)[0]
    assert "Stage sft: succeeded." in done.stdout
    got = place.executed("download", job, str(tmp_path / "model"))
    assert got.returncode == 0, got.stderr
    weights = (tmp_path / "model" / "weights.json").read_text()
    (tmp_path / "model" / "weights.json").unlink()
    (tmp_path / "model" / "weights.json.part").write_text(weights[:10])
    assert place.executed("download", job, str(tmp_path / "model")).returncode == 0
    assert (tmp_path / "model" / "weights.json").read_text() == weights


def test_a_sweep_from_submit_to_its_table_computes_what_is_shared_once(place, capsys):
    train, starts = str(place.data.parent / "train.jsonl"), place.control / "starts"
    before = len(starts.read_text().splitlines()) if starts.exists() else 0
    swept = [train, "--model", "tiny", "--validation", train, "--sweep", "evaluate.max_response_tokens=8,16"]

    def allo(*arguments):
        assert main([*arguments, "--data-dir", str(place.data)]) == 0
        return capsys.readouterr()

    done = allo("submit", *swept, "--seed", "31", "--watch")
    sweep = re.search(r"ftsweep-\w+", done.out)[0]
    started = [line.split()[0] for line in starts.read_text().splitlines()[before:]]
    assert sorted(started) == ["evaluate", "evaluate", "sft"]
    assert "2 of 2 points have no figure." in done.err
    assert json.loads(allo("sweep", sweep, "--json").out)["jobs"] == {"succeeded": 2}
    assert sweep in allo("sweep", "--json").out


def test_what_a_job_will_take_is_told_with_what_is_not_known_and_why(place):
    train = str(place.data.parent / "train.jsonl")
    told = place.allo("estimate", train, "--model", "tiny", "--set", "n_epochs=2")
    assert told.returncode == 0, told.stderr
    assert re.search(r"sft .*GiB .*cores, .*GiB", told.stdout)
    assert "because no worker that could run it has measured how fast it is" in told.stderr
    file = re.search(r"allo submit (file-\w+)", told.stdout)[1]
    again = json.loads(place.allo("estimate", train, "--model", "tiny", "--set", "n_epochs=2", "--json").stdout)
    assert again["training_file"] == file, "what is there is not sent anew"
    (stage,) = again["stages"]
    assert (stage["name"], stage["seconds"], stage["reused"]) == ("sft", None, False)
    assert stage["tokens"] > 0


def test_a_damaged_part_is_not_taken_for_the_file(place, tmp_path):
    job = re.search(r"ftjob-\w+", submit(place, "--watch").stdout)[0]
    (tmp_path / "weights.json.part").write_text("0" * 64)
    refused = place.allo("download", job, str(tmp_path))
    assert refused.returncode == 1
    assert "checksum" in refused.stderr
    assert place.allo("download", job, str(tmp_path)).returncode == 0


def test_a_failed_job_is_a_failed_command(place):
    place.behave(at={"1": "no_pairs"})
    failed = submit(place, "--seed", "7", "--watch")
    place.behave()
    assert failed.returncode == 1
    assert "Sample more responses." in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["submit", "absent.jsonl", "--model", "tiny"], "no file absent.jsonl"),
        (["submit", "file-0", "--model", "tiny"], "file-0"),
        (["submit", "file-0", "--model", "tiny", "--set", "beta"], "STAGE.FIELD=VALUE"),
        (["submit", "file-0", "--model", "tiny", "--stage", "sft", "--without", "sft"], "asked for, too"),
        (["submit", "file-0", "--model", "tinny"], "Did you mean 'tiny'?"),
        (["submit", "file-0", "--model", "tiny", "--sweep", "beta"], "--sweep beta"),
        (["sweep", "ftsweep-of-nobody"], "ftsweep-of-nobody"),
        (["estimate", "file-0", "--model", "tinny"], "Did you mean 'tiny'?"),
        (["cancel", "ftjob-of-nobody"], "ftjob-of-nobody"),
        (["events", "ftjob-of-nobody", "--follow"], "ftjob-of-nobody"),
        (["files", "delete", "file-of-nobody"], "file-of-nobody"),
        (["webhooks", "add", "https://127.0.0.1/x"], "private network"),
        (["watch", "ftjob-of-nobody"], "ftjob-of-nobody"),
        (["watch", "ftjob-0", "--url", "http://127.0.0.1:9"], "allo up"),
        (["watch", "ftjob-0", "--api-key", "wrong"], "key"),
        (["download", "no-such-model", "."], "no-such-model"),
        (["models", "add", "bad", "/nonexistent"], "no folder"),
        (["keys", "revoke", "key-of-nobody"], "key-of-nobody"),
        (["export", "ftjob-0", "gguf", "model.gguf", "--rank", "4"], "--rank is no option of gguf"),
    ],
)
def test_what_cannot_be_says_why(place, capsys, arguments, complaint):
    assert main([*arguments, "--data-dir", str(place.data)]) == 1
    assert complaint in capsys.readouterr().err


def test_a_second_service_in_the_same_folder_is_refused(place):
    refused = place.executed("up")
    assert refused.returncode == 1
    assert "already serves" in refused.stderr
    assert place.allo("doctor").returncode == 0


def test_the_workers_are_shown_with_what_they_have(place):
    (line,) = until(lambda: place.allo("workers", "--json").stdout.splitlines())
    (worker,) = json.loads(line)
    assert worker["slots"] == max(1, len(worker["devices"]))
    shown = place.allo("workers").stdout
    assert worker["id"] in shown
    assert "nothing" in shown, "it runs no stage"
    assert worker["id"] in place.allo("doctor").stdout


def test_keys_are_made_listed_and_revoked(place):
    secret, line = place.allo("keys", "create", "--owner", "alice", "--scopes", "read").stdout.splitlines()[:2]
    key_id = re.search(r"key-\w+", line)[0]
    headers = {"authorization": f"Bearer {secret}"}
    url = (place.data / "url").read_text().strip() + "/v1/models"
    assert asking.get(url, headers=headers).status_code == 200
    assert secret not in place.allo("keys", "list").stdout
    assert place.allo("keys", "revoke", key_id).returncode == 0
    until(lambda: asking.get(url, headers=headers).status_code == 401)  # a moment: keys are remembered


def test_what_dies_is_started_again_and_the_job_goes_on(place):
    place.behave(at={"2": "hold"})
    job = re.search(r"ftjob-\w+", submit(place, "--seed", "11").stdout)[0]
    until(lambda: json.loads(place.allo("jobs", job, "--json").stdout)["stages"][0]["progress"]["step"])
    for process in psutil.Process(place.service.pid).children():  # the broker too, where it is ours
        process.kill()
    place.behave()
    watched = place.allo("watch", job)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert int((place.control / "starts").read_text().split()[-1]) > 0, "it should have gone on from a checkpoint"


def test_a_taken_port_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = Place(tmp_path).executed("up", "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 1
    assert "--port" in refused.stderr


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_process_is_left(tmp_path, ending):
    place = Place(tmp_path)
    service = place.up()
    family = psutil.Process(service.pid).children(recursive=True)
    service.send_signal(ending)
    code = service.wait(PATIENCE)
    assert code == (0 if ending == signal.SIGTERM else -signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=PATIENCE)
    assert not left
    assert (place.data / "url").exists() == (ending == signal.SIGKILL)
    with serving(place.data) as client:  # which does not ask at the address that a killed one left
        assert client.get("/v1/models")["object"] == "list"
    place.close()


def test_a_job_is_checked_before_anything_is_uploaded(place, tmp_path):
    before = json.loads(place.allo("files", "list", "--json").stdout)
    for options, complaint in (
        (["--stage", "sfft"], "Did you mean 'sft'?"),
        (["--set", "lerning_rate=1e-5"], "Did you mean 'learning_rate'?"),
        (["--set", "sft.n_epochs=0"], "n_epochs"),
        (["--method", "supervised", "--masks", "ftjob-x"], "takes over no masks"),
    ):
        refused = submit(place, *options)
        assert refused.returncode == 1
        assert complaint in refused.stderr
    (tmp_path / "bad.jsonl").write_text('{"problem": "p", "solution": "s"}\n{"problem": 1, "solution": "s"}\n')
    refused = place.allo("submit", str(tmp_path / "bad.jsonl"), "--model", "tiny")
    assert "line 2: problem" in refused.stderr
    assert json.loads(place.allo("files", "list", "--json").stdout) == before


def test_a_job_is_managed_from_the_terminal(place):
    place.behave(at={"1": "hold"})
    job = json.loads(submit(place, "--seed", "21", "--json").stdout)["id"]
    assert json.loads(place.allo("pause", job, "--json").stdout)["id"] == job
    until(lambda: json.loads(place.allo("jobs", job, "--json").stdout)["status"] == "paused")
    assert "has priority low" in place.allo("priority", job, "low").stdout
    assert re.search("queued|running", place.allo("resume", job).stdout)
    assert place.allo("cancel", job).returncode == 0
    story = place.allo("events", job, "--follow")
    assert story.stdout.splitlines()[-1].endswith("The job was cancelled.")
    place.behave()
    assert place.allo("retry", job).returncode == 0
    done = place.allo("watch", job)
    assert done.returncode == 0
    assert f"allo download {job} ./aligned" in done.stdout
    assert job in place.allo("jobs", "--status", "succeeded").stdout
    assert job not in place.allo("jobs", "--status", "failed").stdout
    other = json.loads(submit(place, "--seed", "22", "--watch", "--json").stdout.splitlines()[-1])["id"]
    made = json.loads(place.allo("jobs", other, "--json").stdout)["fine_tuned_model"]
    assert "is deleted" in place.allo("delete", other).stdout
    assert other not in place.allo("jobs").stdout
    assert "does not exist" in place.allo("models", "remove", made).stderr


def test_files_are_managed_from_the_terminal(place, tmp_path):
    train = place.data.parent / "train.jsonl"
    made = json.loads(place.allo("files", "upload", str(train), "--json").stdout)
    assert made["id"] in place.allo("files", "list").stdout
    assert place.allo("files", "get", made["id"], str(tmp_path / "got")).returncode == 0
    assert (tmp_path / "got").read_bytes() == train.read_bytes()
    assert "is deleted" in place.allo("files", "delete", made["id"]).stdout


def test_webhooks_are_managed_from_the_terminal(place):
    def told(*arguments):
        done = place.allo("webhooks", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    made = told("add", "https://93.184.215.14/x", "--name", "mine", "--event", "fine_tuning.job.failed")
    assert made["signing_secret"].startswith("whsec_")
    shown = place.allo("webhooks").stdout
    assert made["id"] in shown
    assert "fine_tuning.job.failed" in shown
    assert told("rotate", made["id"], "--keep-old")["signing_secret"] != made["signing_secret"]
    assert told("log", made["id"]) == []
    assert place.allo("webhooks", "log", made["id"]).returncode == 0
    assert told("remove", made["id"])["deleted"]
    assert told("list") == []


def test_a_url_is_taken_as_people_write_it(place):
    url = (place.data / "url").read_text().strip()
    for written in (f"{url}/v1", f"{url}/v1/", url.removeprefix("http://")):
        assert place.allo("jobs", "--url", written).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes_the_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "webhooks" in script
    assert "--validation" in script
    if shell == "bash":
        asked = f"{script}\nCOMP_WORDS=(allo webh) COMP_CWORD=1\n_shtab_allo\necho ${{COMPREPLY[*]}}"
        done = subprocess.run(["/bin/bash"], input=asked, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["webhooks"]


def test_the_command_line_never_loads_torch():
    assert not loaded(["torch", "worker"])


def test_what_stays_beside_the_service_loads_neither_its_database_nor_a_client():
    assert not loaded(["sqlalchemy", "httpx", "redis", "celery", "fastapi"], "up")


def loaded(modules: list[str], command: str = "") -> set[str]:
    """Those of the modules that a command loads, or all commands together."""
    code = f"import sys, service.cli; service.cli.parser({command!r}); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(modules) & set(said.split())


def test_a_key_is_in_no_log_and_in_no_argument_wherever_it_was_sent(place):
    key, url = (place.data / "api_key").read_text().strip(), (place.data / "url").read_text().strip()
    told = {"authorization": f"Bearer {key}", "user-agent": key, "referer": key, "cookie": f"key={key}"}
    job = {"model": key, "training_file": key, "metadata": {key: key}, key: key}
    hook = {"name": key, "url": f"https://{key}@93.184.215.14/{key}", "event_types": [key]}
    with httpx.Client(base_url=url, headers=told, timeout=PATIENCE) as client:
        client.get(f"/v1/files/{key}", params={"after": key, key: key})
        client.get(f"/{key}/{key}/resolve/{key}/{key}")
        client.delete(f"/v1/models/{key}", headers={"idempotency-key": key})
        client.post("/v1/fine_tuning/jobs", json=job, headers={"idempotency-key": key})
        client.post("/v1/webhook_endpoints", json=hook)
        client.post("/v1/files", files={"file": (key, b"{}")}, data={"purpose": key})
        client.get("/v1/models", headers={"authorization": key})
        client.get(
            "/v1/models", headers={"authorization": f"Bearer {key}x", "x-forwarded-for": key, "x-request-id": key}
        )
    until(lambda: (place.data / "logs" / "api.log").read_text().count("status=401") >= 2)
    logs = {path: path.read_text(errors="replace") for path in (place.data / "logs").rglob("*") if path.is_file()}
    assert "path=/v1/webhook_endpoints" in logs[place.data / "logs" / "api.log"]
    assert not [path for path, text in logs.items() if key in text]
    for process in psutil.Process(place.service.pid).children(recursive=True):
        assert not any(key in word for word in process.cmdline())
