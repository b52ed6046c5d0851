"""The unmodified OpenAI client, over a real connection."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from service.jobs.access.keys import create_key
from service.jobs.running import attempts
from service.jobs.tables import Model
from tests.integration.service.domain import Domain
from tests.pages import python

PROBLEMS = b"".join(
    json.dumps({"problem": f"{n} + 1?", "solution": f"It is {n + 1}.", "answer": n + 1}).encode() + b"\n"
    for n in range(20)
)


@pytest.fixture
def client(base_url: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        yield client


@pytest.fixture
def training_file(client: OpenAI) -> str:
    return client.files.create(file=("train.jsonl", PROBLEMS), purpose="fine-tune").id


def test_a_retention_file_is_named_in_the_clients_extra_body(
    client: OpenAI, training_file: str, served: Domain
) -> None:
    chats = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    other = client.files.create(file=("chats.jsonl", chats.encode() + b"\n"), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file, validation_file=training_file, extra_body={"retention_file": other}
    )
    assert job.model_dump()["retention_file"] == other
    assert served.finish(served.claim())
    assert [path for path, *_ in served.claim().inputs["retention"]] == ["data.jsonl"]


@pytest.fixture
def reader(served: Domain, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has what the documentation's examples begin with: a model, a key and a file, in this folder."""
    with served.database.transaction() as session:
        files = [{"path": "model.safetensors", "bytes": served.data.size, "sha256": served.data.sha256}]
        session.add(Model(id="smollm2", owner=None, created_at=0, files=files))
    (tmp_path / "allo-data").mkdir()
    (tmp_path / "allo-data" / "api_key").write_text(f"{secret}\n")
    (tmp_path / "train.jsonl").write_bytes(PROBLEMS)
    monkeypatch.chdir(tmp_path)


def typed(code: str, known: dict[str, Any]) -> None:
    """Runs an example."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it leaves files to Python
        exec(code, known)  # noqa: S102 - our own documentation


@pytest.mark.usefixtures("reader")
def test_the_readmes_python_is_right(base_url: str, served: Domain) -> None:
    found: dict[str, Any] = {}
    typed(python("README.md", "A first job").replace("http://127.0.0.1:8000/v1", base_url), found)
    assert found["job"].status in ("queued", "running")
    assert set(served.statuses(found["job"].id)) > {"sft", "sample", "improve"}


@pytest.mark.usefixtures("reader")
def test_the_python_of_the_page_of_clients_is_right(
    base_url: str, served: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {"meanwhile": served.run_all}
    code = python("service/clients.md", "The openai client").replace("http://127.0.0.1:8000/v1", base_url)
    typed(code.replace("time.sleep(5)", "meanwhile()"), found)
    model = found["job"].fine_tuned_model
    assert model
    assert capsys.readouterr().out == f"{model}\n"
    typed(python("service/clients.md", "Watching"), found)
    told = capsys.readouterr().out.splitlines()
    assert told == [event.message for event in served.events(found["job"].id)]
    assert told[-1] == f"The job succeeded: {model}."


def test_files_are_created_listed_read_and_deleted(client: OpenAI) -> None:
    made = client.files.create(file=("tr\u00e4in.jsonl", PROBLEMS), purpose="fine-tune")
    assert (made.bytes, made.status, made.filename, made.purpose) == (
        len(PROBLEMS),
        "processed",
        "tr\u00e4in.jsonl",
        "fine-tune",
    )
    assert made.model_extra is not None
    assert (made.model_extra["format"], made.model_extra["rows"]) == ("problems", 20)
    assert client.files.retrieve(made.id) == made
    assert made.id in [file.id for file in client.files.list(purpose="fine-tune")]
    digest = hashlib.sha256(PROBLEMS).hexdigest()
    assert made.id in [file.id for file in client.files.list(extra_query={"sha256": digest})]
    assert not list(client.files.list(extra_query={"sha256": "0" * 64}))
    assert client.files.content(made.id).read() == PROBLEMS
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_file_with_an_expiry_says_when(client: OpenAI) -> None:
    made = client.files.create(
        file=("t.jsonl", PROBLEMS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600


def test_a_job_is_followed_from_submit_to_the_model(client: OpenAI, served: Domain, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training_file,
        validation_file="file-heldout",
        method={"type": "allo", "allo": {"stages": {"sft": {}, "improve": {"beta": 0.3}}}},  # type: ignore[typeddict-item]
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
    )
    extra = extra_of(job)
    assert (job.status, job.model, job.seed, job.metadata) == ("queued", "tiny", 7, {"team": "a"})
    assert [stage["name"] for stage in extra["stages"]][:3] == ["sft", "sample", "pair"]
    assert extra_of(job.method)["allo"]["stages"]["improve"]["beta"] == 0.3
    assert extra_of(job.method)["allo"]["stages"]["sample"]["temperature"] == 0.7
    claimed = served.claim()
    attempts.heartbeat(served.database, claimed.stage_id, claimed.epoch, 5, 10, {"loss": 0.7})
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert extra_of(running)["stages"][0]["progress"] == {"step": 5, "total": 10, "fraction": 0.5}
    served.finish(claimed, {"loss": 0.6})
    served.run_all()
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded"
    assert done.fine_tuned_model == f"ft:tiny:mine:{job.id[-8:]}"
    assert client.files.content(done.result_files[0]).read() == b"some content"
    assert client.models.retrieve(done.fine_tuned_model).owned_by == "owner"
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    found = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.fine_tuned_model_checkpoint.split(":")[-1] for checkpoint in found] == [
        "ckpt-improve",
        "ckpt-forget",
        "ckpt-warmup",
        "ckpt-sft",
    ]
    assert (found[-1].step_number, found[-1].metrics.train_loss) == (10, 0.6)


def test_a_stage_that_is_null_is_left_out_of_the_job_and_of_one_like_it(client: OpenAI, training_file: str) -> None:
    def asked(settings: Any) -> Any:
        method: Any = {"type": "allo", "allo": settings}
        return client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method)

    job = asked({"stages": {"sft": {}, "forget": None}})
    again = asked({"stages": extra_of(job.method)["allo"]["stages"]})
    for made in (job, again):
        names = [stage["name"] for stage in extra_of(made)["stages"]]
        assert names == ["sft", "sample", "pair", "warmup", "locate", "improve"]
        assert extra_of(made.method)["allo"]["stages"]["forget"] is None
    with pytest.raises(openai.UnprocessableEntityError, match="pair cannot be left out"):
        asked({"stages": {"pair": None}})


def test_a_job_that_samples_what_sft_saw_is_warned(client: OpenAI, training_file: str) -> None:
    def warned(share: float) -> list[str]:
        method: Any = {"type": "dpo", "dpo": {"stages": {"sft": {"share": share}}}}
        job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method)
        return [event.message for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "warn"]

    assert not any("skip_share" in message for message in warned(0.3))
    assert any("sample.skip_share 0)" in message for message in warned(1))


def test_lists_page_through_everything(client: OpenAI, training_file: str) -> None:
    made = [submit(client, training_file, seed=seed).id for seed in range(5)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata[seed]": "3"})] == [made[3]]
    events = list(client.fine_tuning.jobs.list_events(made[0], limit=1))
    assert events[0].message.startswith("The job was accepted")
    assert {training_file, "file-train", "file-heldout"} == {file.id for file in client.files.list(limit=1)}


def test_a_cancelled_job_is_cancelled(client: OpenAI, training_file: str) -> None:
    job = submit(client, training_file)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_a_model_with_a_slash_in_its_name_can_be_read(client: OpenAI, served: Domain) -> None:
    with served.database.transaction() as session:
        session.add(Model(id="acme/tiny", owner=None, created_at=0, files=[]))
    assert client.models.retrieve("acme/tiny").id == "acme/tiny"


def test_a_made_model_can_be_deleted_and_everyones_needs_an_admin(
    client: OpenAI, served: Domain, base_url: str, training_file: str
) -> None:
    job = submit(client, training_file)
    served.run_all()
    name = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert name is not None
    user = OpenAI(base_url=base_url, api_key=create_key(served.database, "owner").secret)
    assert user.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        user.models.retrieve(name)
    with pytest.raises(openai.PermissionDeniedError):
        user.models.delete("tiny")
    assert client.models.delete("tiny").deleted
    user.close()


def test_every_error_arrives_as_its_own_exception(
    client: OpenAI, base_url: str, served: Domain, training_file: str
) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="allo-wrong").models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.NotFoundError) as absent:
        submit(client, training_file, model="nobody")
    assert (absent.value.code, absent.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.UnprocessableEntityError) as ratio:
        submit(client, training_file, type="allo", stages={"locate": {"forget_ratio": 1.5}})
    assert ratio.value.param == "method.allo.stages.locate.forget_ratio"
    assert "less than or equal to 1" in str(ratio.value)
    with pytest.raises(openai.UnprocessableEntityError, match=r"temperature: there is no such field"):
        client.fine_tuning.jobs.create(model="tiny", training_file=training_file, extra_body={"temperature": 1})
    reader = create_key(served.database, "owner", ("read",)).secret
    with pytest.raises(openai.PermissionDeniedError):
        submit(client.with_options(api_key=reader), training_file)
    done = submit(client, training_file).id
    served.run_all()
    with pytest.raises(openai.ConflictError) as conflict:
        client.with_options(max_retries=2).fine_tuning.jobs.cancel(done)
    assert conflict.value.response.headers["x-should-retry"] == "false"
    assert conflict.value.request_id is not None


def test_a_file_with_bad_lines_names_them_and_keeps_the_report(client: OpenAI) -> None:
    lines = [PROBLEMS.splitlines()[0], b'{"problem": "p"}', b"nonsense"] + [b'{"problem": 1}'] * 100
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(file=("bad.jsonl", b"\n".join(lines)), purpose="fine-tune")
    error: Any = refused.value.body
    assert "line 2: field solution is missing" in error["message"]
    assert error["lines"][:2] == [
        {"line": 2, "field": "solution", "wrong": "is missing", "right": "a field 'solution' (or output)"},
        {
            "line": 3,
            "field": None,
            "wrong": "is not JSON at its character 1: Expecting value",
            "right": "one JSON object a line",
        },
    ]
    assert len(error["lines"]) == 100
    kept = client.files.retrieve(error["file_id"])
    assert kept.status == "error"
    report = client.get(error["report"].removeprefix("/v1"), cast_to=str)
    assert len(report.splitlines()) == 202
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be used"):
        submit(client, kept.id)


def test_a_file_over_the_limit_is_an_answer_and_no_broken_connection(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("big.jsonl", b"x" * 20_000_000), purpose="fine-tune")
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


def test_the_clients_own_retry_never_makes_a_second_job(client: OpenAI, training_file: str) -> None:
    first = submit(client, training_file)
    again = submit(client, training_file, headers={"x-stainless-retry-count": "1"})
    other = submit(client, training_file)
    assert first.id == again.id != other.id
    keyed = [submit(client, training_file, headers={"Idempotency-Key": "k"}).id for _ in range(2)]
    assert keyed[0] == keyed[1] != other.id


def submit(
    client: OpenAI,
    training_file: str,
    seed: int = 0,
    model: str = "tiny",
    type: str = "supervised",
    stages: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    return client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file,
        method={"type": type, type: {"stages": stages or {}}},  # type: ignore[misc]
        seed=seed,
        metadata={"seed": str(seed)},
        extra_headers=headers,
    )


def extra_of(answer: Any) -> dict[str, Any]:
    assert answer.model_extra is not None
    return dict(answer.model_extra)
