"""The main job over HTTP on a tiny model, through a worker that is killed; and every client's own way through it.

Each client drives a whole job: it uploads, submits, follows, downloads, loads and generates. The first job trains. A
client that asks for the same afterwards is answered from what that one computed, which is part of what is shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from openai.types.fine_tuning import FineTuningJobEvent
from transformers import AutoModelForCausalLM, AutoTokenizer

from allo_engine.exports.checking import difference, of_folder, outputs
from tests.e2e.conftest import Service
from tests.e2e.jobs import stages_of, status_is, streamed, submit, wait
from tests.pages import commands
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.stages.test_stages import SETTINGS
from tests.waiting import PATIENCE, until

LONG_IMPROVE = SETTINGS | {
    "improve": {"learning_rate": 1e-4, "n_epochs": 300, "batch_size": 8, "checkpoint_seconds": 0.2}
}


@dataclass(frozen=True)
class Finished:
    """A job that ended well although its worker was killed in the middle of `improve`, and what was told of it live."""

    id: str
    events: list[FineTuningJobEvent]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("files") / "problems") / "data.jsonl"


@pytest.fixture(scope="module")
def files(service: Service, problems: Path) -> dict[str, str]:
    """One came in parts."""
    with service.client() as client:
        upload = client.uploads.upload_file_chunked(
            file=problems, mime_type="application/jsonl", purpose="fine-tune", part_size=200
        )
        assert upload.file
        validation = client.files.create(file=problems, purpose="fine-tune")
    return {"training_file": upload.file.id, "validation_file": validation.id}


def estimate(client: openai.OpenAI, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the main job will take, by its stages."""
    body = {"model": "tiny", "seed": 1, **files, "method": {"type": "allo", "allo": {"stages": LONG_IMPROVE}}}
    found = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=dict[str, Any])
    return {stage["name"]: stage for stage in found["stages"]}


@pytest.fixture(scope="module")
def expected(service: Service, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The estimate of the main job, before there was one."""
    with service.client() as client:
        return estimate(client, files)


@pytest.fixture(scope="module")
def finished(service: Service, files: dict[str, str], expected: dict[str, dict[str, Any]]) -> Finished:
    with service.client() as client:
        job_id = submit(client, files, "allo", LONG_IMPROVE, suffix="mine")
        events, workers = [], service.processes("worker")
        for event in streamed(client, job_id):
            events.append(event)
            figures = event.data if event.type == "metrics" and isinstance(event.data, dict) else {}
            if workers and figures.get("stage") == "improve" and figures["step"] >= 20:
                for process in workers:
                    process.kill()
                workers = []
    assert not workers, "improve was over before it was killed"
    return Finished(job_id, events)


def generated(folder: Path, **options: Any) -> list[int]:
    """What a model says of the sky, by plain transformers."""
    ids = AutoTokenizer.from_pretrained(folder)("sky", return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    found: list[int] = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :].tolist()
    assert found
    return found


@pytest.fixture(scope="module")
def aligned(service: Service, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's model, fetched file by file by the openai client, and checked."""
    folder = tmp_path_factory.mktemp("aligned")
    with service.client() as client:
        name = client.fine_tuning.jobs.retrieve(finished.id).fine_tuned_model
        for file in client.get(f"/models/{name}/files", cast_to=dict[str, Any])["data"]:
            answer = client.get(file["url"].removeprefix("/v1"), cast_to=httpx.Response)
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            (folder / file["path"]).write_bytes(answer.content)
    return folder


def test_openai_drives_a_job_whose_worker_is_killed_and_misses_nothing_of_it(
    client: openai.OpenAI, finished: Finished, aligned: Path
) -> None:
    job = client.fine_tuning.jobs.retrieve(finished.id)
    assert job.status == "succeeded"
    assert job.fine_tuned_model in {model.id for model in client.models.list()}
    assert job.trained_tokens
    assert stages_of(client, finished.id)["improve"]["attempt"] == 2
    assert any("Resumed behind step" in event.message for event in finished.events)
    listed = [event.id for event in client.fine_tuning.jobs.list_events(finished.id, limit=100)]
    assert [event.id for event in finished.events] == listed[::-1]
    (report,) = job.result_files
    rows = json.loads(client.files.content(report).read())["models"]
    assert [row["model"] for row in rows] == ["base", "sft", "warmup", "forget", "improve"]
    checkpoints = client.fine_tuning.jobs.checkpoints.list(finished.id).data
    assert {checkpoint.fine_tuning_job_id for checkpoint in checkpoints} == {finished.id}
    assert len(checkpoints) == 4
    assert generated(aligned)


def test_the_dashboard_shows_what_the_job_learned(service: Service, finished: Finished) -> None:
    with httpx.Client(base_url=service.url, headers={"origin": service.url}, timeout=PATIENCE) as browser:
        assert browser.post("/ui/login", data={"key": service.key}).status_code == 303
        parts = ("", "/responses", "/answers?theirs=base")
        learned, responses, answers = (browser.get(f"/ui/jobs/{finished.id}/learned{part}").text for part in parts)
    assert 'class="chart heat"' in learned
    assert all(f">{name}</text>" in learned for name in ("Base", "SFT", "Forgotten", "Aligned"))
    assert re.search('<span class="p[0-9]+ gone" title="P 0.[0-4][0-9]*, weight 1.00">', responses)
    assert re.search("of 8 cases [0-9] were gained and [0-9] lost", answers)


def test_a_job_is_as_its_estimate_said_and_the_next_estimate_finds_all_of_it_there(
    client: openai.OpenAI, files: dict[str, str], expected: dict[str, dict[str, Any]], finished: Finished
) -> None:
    ran = stages_of(client, finished.id)
    assert list(expected) == list(ran)
    assert not any(stage["reused"] for stage in expected.values())
    assert all(stage["workers"] and stage["peak_memory_bytes"] for stage in expected.values())
    last_tokens = SETTINGS["sft"]["n_epochs"] * 8  # each response has one, which is scored and never read
    assert 0 <= ran["sft"]["metrics"]["trained_tokens"] - expected["sft"]["tokens"] <= last_tokens
    again = estimate(client, files)
    assert {name: stage["reused_from"] for name, stage in again.items()} == {name: ran[name]["id"] for name in ran}
    assert {stage["tokens"] for stage in again.values()} == {0}


def test_models_of_a_real_report_are_compared_case_by_case(client: openai.OpenAI, finished: Finished) -> None:
    (report,) = client.fine_tuning.jobs.retrieve(finished.id).result_files
    rows = {row["model"]: row for row in json.loads(client.files.content(report).read())["models"]}
    asked = {"ours": finished.id, "theirs": f"{finished.id}:base"}
    found = client.get("/fine_tuning/jobs/compare", options={"params": asked}, cast_to=dict[str, Any])
    assert (found["cases"], found["left_out"]) == (rows["base"]["problems"], 0)
    accuracy = found["measures"][0]
    assert [accuracy[side] for side in ("ours", "theirs")] == pytest.approx(
        [rows[name]["accuracy"] for name in ("improve", "base")]
    )
    changed = found["changed"]
    assert changed["gained"] - changed["lost"] == rows["improve"]["right"] - rows["base"]["right"]
    assert changed["gained"] > 0
    assert all(case["problem"] and case["ours"] != case["theirs"] for case in changed["shown"])


TRANSFORMERS = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

found = {}
for revision in sys.argv[2:]:
    ids = AutoTokenizer.from_pretrained(sys.argv[1], revision=revision)("sky", return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision=revision)
    found[revision] = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1]:].tolist()
print(json.dumps(found))
"""


def test_the_hubs_clients_load_a_job_by_its_name(
    service: Service, finished: Finished, aligned: Path, tmp_path: Path
) -> None:
    repository, where = f"jobs/{finished.id}", {"endpoint": service.url, "token": service.key}
    folder = Path(snapshot_download(repository, cache_dir=tmp_path / "hub", **where))
    assert folder.name == HfApi(**where).model_info(repository).sha
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in aligned.iterdir())
    environment = {**os.environ, "HF_ENDPOINT": service.url, "HF_TOKEN": service.key, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    revisions = ("main", "sft", "warmup", "forgotten")
    command = [sys.executable, "-c", TRANSFORMERS, repository, *revisions]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["main"] == generated(aligned)
    sft = snapshot_download(repository, revision="sft", cache_dir=tmp_path / "hub", **where)
    assert said["sft"] == generated(Path(sft))
    assert all(said[revision] for revision in revisions)


def test_what_the_job_left_is_talked_to_from_the_terminal_and_by_openai(
    service: Service, client: openai.OpenAI, finished: Finished, aligned: Path
) -> None:
    models = [finished.id, f"{finished.id}:sft", f"{finished.id}:forget"]

    def all_answer() -> bool:
        options = ("--prompt", "Of what colour is the sky?", "--max-tokens", 8, "--json")
        return [one["error"] for one in json.loads(service.allo("chat", *models, *options).stdout)] == [None] * 3

    until(all_answer)  # once the worker has nothing to train
    assert len(service.processes("allo_engine.answering")) == 1, "they share their base"
    name = client.fine_tuning.jobs.retrieve(finished.id).fine_tuned_model
    assert name
    found = client.completions.create(model=name, prompt="sky", max_tokens=4, temperature=0)
    said = AutoTokenizer.from_pretrained(aligned).decode(generated(aligned), skip_special_tokens=True)
    assert found.choices[0].text == said


def off(model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """How far a model's logits are from those of the model in the folder."""
    wanted = of_folder(folder)
    return difference(wanted, outputs(model, wanted.ids).logits)


def test_allo_drives_a_whole_job_and_its_exports_are_as_far_off_as_they_say(
    service: Service,
    client: openai.OpenAI,
    problems: Path,
    finished: Finished,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def allo(*arguments: object) -> str:
        done = service.allo(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    settings = [f"{stage}.{name}={value}" for stage, given in LONG_IMPROVE.items() for name, value in given.items()]
    options = ("--model", "tiny", "--method", "allo", "--seed", 1, "--validation", problems)
    told = allo("submit", problems, *options, *(word for pair in settings for word in ("--set", pair)), "--watch")
    job = re.findall(r"allo download (ftjob-\w+) ./aligned", told)[0]
    assert job != finished.id
    assert told.count("reused, nothing of it has changed") == 10
    assert "Held-out problems" in told
    allo("download", job, "model")
    assert generated(tmp_path / "model") == generated(aligned)
    told = allo("export", job, "gguf", "model.gguf", "--json")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert off(read, aligned) == pytest.approx(json.loads(told)["figures"]["logits"], rel=0.01)
    told = allo("export", job, "peft", "adapter.tar", "--rank", 32, "--json")
    with tarfile.open(tmp_path / "adapter.tar") as archive:
        archive.extractall(tmp_path / "adapter", filter="data")
    from peft import PeftModel  # here: it takes seconds

    base = AutoModelForCausalLM.from_pretrained(service.folder.parent / "tiny-source")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert off(adapted, aligned) == pytest.approx(json.loads(told)["figures"]["logits"], rel=0.01)
    name = client.fine_tuning.jobs.retrieve(job).fine_tuned_model
    one = client.get(f"/models/{name}/export/peft?rank=32&file=adapter_config.json", cast_to=httpx.Response)
    assert one.json() == json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    allo("delete", job)
    left = [found["id"] for found in json.loads(allo("jobs", "--json"))]
    assert job not in left
    assert finished.id in left, "what was taken over from it, it has itself"


def test_a_second_round_goes_on_from_the_merged_model_of_the_first(
    service: Service, client: openai.OpenAI, files: dict[str, str], finished: Finished, tmp_path: Path
) -> None:
    twice = SETTINGS | {"sample": {**SETTINGS["sample"], "rounds": 2}}
    job = submit(client, files, "allo", twice)
    wait(client, job, status_is(client, job, "succeeded"))
    ran = stages_of(client, job)
    computed = [name for name, stage in ran.items() if not stage["reused_from"]]
    assert computed == ["improve", "sample-2", "pair-2", "improve-2", "evaluate"]
    (report, *_) = client.fine_tuning.jobs.retrieve(job).result_files
    rows = json.loads(client.files.content(report).read())["models"]
    assert [row["model"] for row in rows] == ["base", "sft", "warmup", "forget", "improve", "improve-2"]
    where = {"endpoint": service.url, "token": service.key, "cache_dir": tmp_path}
    first, second = (
        Path(snapshot_download(f"jobs/{job}", revision=revision, **where)) for revision in ("improve", "main")
    )
    assert generated(second)
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_the_best_checkpoint_by_accuracy_is_told_wherever_the_job_is_looked_at(
    service: Service, client: openai.OpenAI, files: dict[str, str], tmp_path: Path
) -> None:
    best = {"validation_share": 0.4, "evaluate_every": 1, "best_by": "accuracy"}
    job = submit(client, files, "supervised", {"sft": {"learning_rate": 3e-3, "n_epochs": 3, "batch_size": 4, **best}})
    wait(client, job, status_is(client, job, "succeeded"))
    told = stages_of(client, job)["sft"]["metrics"]
    events = [event.message for event in client.fine_tuning.jobs.list_events(job, limit=100)]
    assert any(
        f"{100 * told['best_validation_accuracy']:.1f} % on held-out items is the highest" in one for one in events
    )
    card = Path(
        hf_hub_download(f"jobs/{job}", "README.md", endpoint=service.url, token=service.key, cache_dir=tmp_path)
    )
    assert f"behind step {told['best_step']:g} of {told['steps']:g}, the best on what was held out, of which" in (
        card.read_text()
    )


class Shell:
    """A person who types what a page says, with names of their own where it has `…`."""

    def __init__(self, service: Service, folder: Path, start: str) -> None:
        self._folder, self._start = folder, start
        self._names = {"http://127.0.0.1:8000": service.url, "smollm2": "tiny"}
        (folder / "allo-data").symlink_to(service.folder)

    def knows(self, name: str, value: str) -> None:
        self._names[name] = value

    def types(self, command: str) -> str:
        text = f"set -e\n{self._start}\n{command}"
        for name, value in self._names.items():
            text = text.replace(name, value)
        done = subprocess.run(["/bin/bash", "-c", text], cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_curl_drives_a_whole_job_as_the_page_of_clients_has_it(
    service: Service, client: openai.OpenAI, problems: Path, tmp_path: Path
) -> None:
    start, upload, create, watch, download, unpack = commands("service/clients.md", "curl")
    shell = Shell(service, tmp_path, start)
    shutil.copy(problems, tmp_path / "train.jsonl")
    shell.knows("file-…", json.loads(shell.types(upload))["id"])
    job = json.loads(shell.types(create))["id"]
    shell.knows("ftjob-…", job)
    events = [json.loads(line[6:]) for line in shell.types(watch).splitlines() if line.startswith("data: ")]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    name = client.fine_tuning.jobs.retrieve(job).fine_tuned_model
    assert name
    assert events[-1]["message"] == f"The job succeeded: {name}."
    shell.knows("ft:…", name)
    shell.types(download.replace("--continue-at -", "--range 0-49999"))  # as if the connection broke there
    assert (tmp_path / "aligned.tar").stat().st_size == 50_000
    shell.types(download)
    shell.types(unpack)
    assert generated(tmp_path / "aligned")


def test_the_first_jobs_commands_in_the_readme_are_right(
    service: Service, client: openai.OpenAI, problems: Path, tmp_path: Path
) -> None:
    start, upload, create, read, watch = [line for line in commands("README.md", "A first job") if "KEY" in line]
    shell = Shell(service, tmp_path, start)
    shutil.copy(problems, tmp_path / "train.jsonl")
    shell.knows("file-…", json.loads(shell.types(upload))["id"])
    job = json.loads(shell.types(create))
    shell.knows("ftjob-…", job["id"])
    client.fine_tuning.jobs.cancel(job["id"])  # with its default settings nothing that is worth the wait comes of it
    assert json.loads(shell.types(read))["id"] == job["id"]
    assert "The job was cancelled." in shell.types(watch)


def test_torch_is_loaded_where_stages_are_forked_and_nowhere_else_in_the_worker(
    service: Service, finished: Finished
) -> None:
    assert len(service.processes("worker")) >= 2, "the worker and its slot"
    assert not any(map(maps_torch, service.processes("worker") + service.processes("worker.scheduler")))
    until(lambda: any(map(maps_torch, service.processes("worker.warm"))))


def maps_torch(process: psutil.Process) -> bool:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_change_to_the_last_stage_pays_for_that_stage_alone(
    client: openai.OpenAI, files: dict[str, str], finished: Finished
) -> None:
    changed = {**LONG_IMPROVE, "evaluate": {"max_response_tokens": 20}}
    job_id = submit(client, files, "allo", changed)
    wait(client, job_id, status_is(client, job_id, "succeeded"))
    ran = [name for name, stage in stages_of(client, job_id).items() if not stage["reused_from"]]
    assert ran == ["evaluate"]


def test_cancel_while_a_stage_trains_leaves_no_process(
    service: Service, client: openai.OpenAI, files: dict[str, str]
) -> None:
    job_id = submit(client, files, "supervised", {"sft": {"n_epochs": 10_000}})
    wait(client, job_id, lambda: bool(stages_of(client, job_id)["sft"]["metrics"]))
    assert service.processes("allo_engine")
    client.fine_tuning.jobs.cancel(job_id)
    until(lambda: not service.processes("allo_engine"))
    wait(client, job_id, status_is(client, job_id, "cancelled"))


def test_a_stage_that_cannot_go_on_fails_the_job_with_what_to_change(
    client: openai.OpenAI, files: dict[str, str]
) -> None:
    job_id = submit(client, files, "dpo", {"sample": {"n": 1, "max_response_tokens": 4}})
    until(status_is(client, job_id, "failed"))
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.error.code == "no_right_answers"
    assert "sft" in job.error.message
    assert stages_of(client, job_id)["pair"]["attempt"] == 1
