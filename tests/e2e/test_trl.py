"""Baselines by TRL's trainers over HTTP: a job whose worker is killed in the middle, and one that is refused."""

from __future__ import annotations

import json

import openai
import pytest

from tests.e2e.conftest import Service
from tests.e2e.jobs import stages_of, status_is, submit, wait

LONG = {"trainer": "trl", "loss": "ipo", "learning_rate": 1e-4, "n_epochs": 300, "batch_size": 2}


@pytest.fixture(scope="module")
def preferences(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("preferences") / "data.jsonl"
    lines = [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in ("red", "blue", "green", "pink")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with service.client() as client:
        file = client.files.create(file=path, purpose="fine-tune")
    return {"training_file": file.id, "validation_file": file.id}


def test_a_job_that_trl_trains_goes_on_where_its_worker_was_killed_and_is_evaluated(
    service: Service, client: openai.OpenAI, preferences: dict[str, str]
) -> None:
    for seed in range(100):
        job_id = submit(client, preferences, "dpo", {"warmup": {**LONG, "checkpoint_seconds": 0.2}}, seed)
        wait(
            client, job_id, lambda job=job_id: (stages_of(client, job)["warmup"]["metrics"] or {}).get("step", 0) >= 50
        )
        for process in service.processes("worker"):
            process.kill()
        wait(client, job_id, status_is(client, job_id, "succeeded"))
        warmup = stages_of(client, job_id)["warmup"]
        if warmup["attempt"] == 2:
            break  # else, on a busy machine, it was over before it was killed
    assert warmup["attempt"] == 2
    assert warmup["metrics"]["steps"] == 600
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)]
    assert any("Resumed behind step" in message for message in messages)
    assert client.fine_tuning.jobs.retrieve(job_id).trained_tokens == warmup["metrics"]["trained_tokens"]
    (report,) = client.fine_tuning.jobs.retrieve(job_id).result_files
    rows = {row["model"]: row for row in json.loads(client.files.content(report).read())["models"]}
    assert rows["warmup"]["accuracy"] == 1.0


def test_a_loss_that_the_engine_does_not_have_is_refused_at_submit(
    client: openai.OpenAI, preferences: dict[str, str]
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        submit(client, preferences, "dpo", {"warmup": {"loss": "ipo"}})
    assert refused.value.body["param"] == "method.dpo.stages.warmup.loss"
    message = "Stage warmup: loss is for TRL alone: set trainer to 'trl', or leave it out (given: 'ipo')."
    assert refused.value.body["message"] == message
