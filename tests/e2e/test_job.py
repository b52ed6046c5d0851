"""The main job over HTTP on a tiny model, with the unmodified openai client, through a worker that is killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import Service
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.stages.test_stages import SETTINGS
from tests.waiting import until

LONG_IMPROVE = SETTINGS | {
    "improve": {"learning_rate": 1e-4, "n_epochs": 300, "batch_size": 8, "checkpoint_seconds": 0.2}
}


def submit(client: openai.OpenAI, files: dict[str, str], kind: str, stages: dict[str, Any], **more: Any) -> str:
    method = {"type": kind, kind: {"stages": stages}}
    job = client.fine_tuning.jobs.create(model="tiny", seed=1, **files, extra_body={"method": method, **more})
    return str(job.id)


def stages_of(client: openai.OpenAI, job_id: str) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in client.fine_tuning.jobs.retrieve(job_id).model_extra["stages"]}


def wait(client: openai.OpenAI, job_id: str, reached: Callable[[], bool]) -> None:
    def come_to_it() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status != "failed", job.error
        return reached()

    until(come_to_it)


def status_is(client: openai.OpenAI, job_id: str, *wanted: str) -> Callable[[], bool]:
    return lambda: client.fine_tuning.jobs.retrieve(job_id).status in wanted


@pytest.fixture(scope="module")
def files(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = write_problems(tmp_path_factory.mktemp("files") / "problems") / "data.jsonl"
    with service.client() as client:
        given = {name: client.files.create(file=path, purpose="fine-tune") for name in ("training", "validation")}
    return {f"{name}_file": file.id for name, file in given.items()}


@pytest.fixture(scope="module")
def finished(service: Service, files: dict[str, str]) -> str:
    """A job that ended well although its worker was killed in the middle of `improve`."""
    with service.client() as client:
        job_id = submit(client, files, "allo", LONG_IMPROVE, suffix="mine")
        wait(client, job_id, lambda: (stages_of(client, job_id)["improve"]["metrics"] or {}).get("step", 0) >= 20)
        for process in service.processes("worker"):
            process.kill()
        wait(client, job_id, status_is(client, job_id, "succeeded"))
    return job_id


def test_a_job_whose_worker_was_killed_goes_on_and_succeeds(client: openai.OpenAI, finished: str) -> None:
    job = client.fine_tuning.jobs.retrieve(finished)
    assert job.fine_tuned_model
    assert job.trained_tokens
    improve = stages_of(client, finished)["improve"]
    assert improve["attempt"] == 2
    messages = [event.message for event in client.fine_tuning.jobs.list_events(finished, limit=100)]
    assert any("Resumed behind step" in message for message in messages)


def test_torch_is_loaded_where_stages_are_forked_and_nowhere_else_in_the_worker(
    service: Service, finished: str
) -> None:
    assert len(service.processes("worker")) >= 2, "the worker and its slot"
    assert not any(map(maps_torch, service.processes("worker") + service.processes("worker.scheduler")))
    until(lambda: any(map(maps_torch, service.processes("worker.warm"))))


def maps_torch(process: psutil.Process) -> bool:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def test_the_aligned_model_is_downloaded_and_loads_with_plain_transformers(
    service: Service, client: openai.OpenAI, finished: str, tmp_path: Path
) -> None:
    name = client.fine_tuning.jobs.retrieve(finished).fine_tuned_model
    headers = {"authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers) as http:
        for file in http.get(f"/v1/models/{name}/files").raise_for_status().json()["data"]:
            content = http.get(file["url"]).raise_for_status().content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            (tmp_path / file["path"]).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("sky", return_tensors="pt")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generate(**ids, max_new_tokens=3).shape[1] >= 4


def test_the_report_is_the_jobs_result_file(client: openai.OpenAI, finished: str) -> None:
    (name,) = client.fine_tuning.jobs.retrieve(finished).result_files
    rows = json.loads(client.files.content(name).read())["models"]
    assert [row["model"] for row in rows] == ["base", "sft", "warmup", "forget", "improve"]


def test_checkpoints_and_models_are_listed(client: openai.OpenAI, finished: str) -> None:
    job = client.fine_tuning.jobs.retrieve(finished)
    checkpoints = client.fine_tuning.jobs.checkpoints.list(finished).data
    assert {checkpoint.fine_tuning_job_id for checkpoint in checkpoints} == {finished}
    assert len(checkpoints) == 4
    assert job.fine_tuned_model in {model.id for model in client.models.list()}


def test_the_same_job_again_runs_nothing(client: openai.OpenAI, files: dict[str, str], finished: str) -> None:
    again = submit(client, files, "allo", LONG_IMPROVE)
    wait(client, again, status_is(client, again, "succeeded"))
    first = stages_of(client, finished)
    for name, stage in stages_of(client, again).items():
        assert stage["reused_from"] == first[name]["id"]
        assert {file["sha256"] for file in stage["artifacts"]} == {file["sha256"] for file in first[name]["artifacts"]}


def test_a_change_to_the_last_stage_pays_for_that_stage_alone(
    client: openai.OpenAI, files: dict[str, str], finished: str
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
