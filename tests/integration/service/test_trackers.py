"""Trackers are told of jobs: by their own libraries, of all of it, once, and never in a job's way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.jobs import service
from service.jobs.access import tracking
from service.jobs.access.tracking import News, record, take_due
from service.jobs.errors import InvalidRequest
from service.jobs.running import attempts
from service.jobs.running.attempts import Claim
from service.trackers.courier import Teller
from tests.clock import Clock
from tests.integration.service.domain import OWNER, SUPERVISED, Domain

ALLOWED = "mlflow=http://127.0.0.1:1,mlflow=sqlite:////b,wandb,trackio=org/space"
TRACKED = replace(SUPERVISED, integrations=[{"type": "mlflow", "mlflow": {"experiment": "e", "run_name": "mine"}}])


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


def submitted(domain: Domain, allowed: str = ALLOWED) -> str:
    return domain.submit(TRACKED, domain.sender(trackers=allowed)).job.id


def told(domain: Domain, claimed: Claim, *points: tuple[int, float]) -> None:
    for step, loss in points:
        at = (domain.database, claimed.stage_id, claimed.epoch, "info", f"Step {step}.")
        attempts.record_message(*at, {"step": step, "steps": 9, "loss": loss}, type="metrics")


def taken(domain: Domain) -> News:
    (news,) = take_due(domain.database, "mlflow", 10)
    return news


def steps(news: News) -> list[int]:
    assert news.telling is not None
    return [point.step for point in news.telling.points]


def said(domain: Domain, job: str) -> list[str]:
    return [event.message for event in domain.events(job) if "MLflow" in event.message]


def test_a_tracker_whose_library_is_not_here_is_refused(domain: Domain) -> None:
    new = replace(SUPERVISED, integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    with pytest.raises(InvalidRequest, match=r"pip install 'allo\[wandb\]'"):
        domain.submit(new, domain.sender(trackers=ALLOWED))


def test_what_is_new_is_told_once(domain: Domain, clock: Clock) -> None:
    job = submitted(domain)
    first = taken(domain)
    assert first.telling is not None
    assert (first.telling.status, first.telling.parameters["sft.batch_size"]) == ("queued", "128")
    record(domain.database, first, "run-1", None)
    claimed = domain.claim()
    told(domain, claimed, (1, 0.9), (2, 0.8))
    assert take_due(domain.database, "mlflow", 10) == [], "its turn comes later"
    clock.now += tracking.PERIOD
    news = taken(domain)
    assert (steps(news), news.telling.run, news.telling.doubtful) == ([1, 2], "run-1", False)  # type: ignore[union-attr]
    record(domain.database, news, "run-1", None)
    told(domain, claimed, (2, 0.7), (3, 0.6))
    clock.now += tracking.PERIOD
    news = taken(domain)
    assert steps(news) == [3], "a step that ran again was told"
    record(domain.database, news, "run-1", None)
    domain.finish(claimed, {"loss": 0.5})
    domain.run_all()
    last = taken(domain)
    assert last.telling is not None
    assert (last.telling.status, last.telling.results["result/sft/loss"]) == ("succeeded", 0.5)
    record(domain.database, last, "run-1", None)
    clock.now += 10 * tracking.CLAIM
    assert take_due(domain.database, "mlflow", 10) == []
    assert said(domain, job) == ["MLflow is told of this job, as run run-1."]
    service.delete(domain.database, OWNER, job)


def test_a_long_training_is_told_in_parts(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MOST_POINTS", 2)
    submitted(domain)
    claimed = domain.claim()
    told(domain, claimed, *((step, 1.0) for step in range(5)))
    domain.finish(claimed)
    domain.run_all()
    found = []
    while due := take_due(domain.database, "mlflow", 10):
        found.append((steps(due[0]), due[0].telling.status, bool(due[0].telling.results)))  # type: ignore[union-attr]
        record(domain.database, due[0], "run", None)
    assert found == [([0, 1], "running", False), ([2, 3], "running", False), ([4], "succeeded", False)]


def test_what_a_dead_process_took_is_due_again_and_in_doubt(domain: Domain, clock: Clock) -> None:
    submitted(domain)
    lost = taken(domain)
    assert take_due(domain.database, "mlflow", 10) == [], "it is another's for the time being"
    clock.now += tracking.CLAIM
    news = taken(domain)
    assert news.telling is not None
    assert news.telling.doubtful
    record(domain.database, lost, "late", None)
    record(domain.database, news, "run", None)
    domain.run_all()
    assert taken(domain).telling.run == "run", "a stale note changes nothing"  # type: ignore[union-attr]


def test_a_tracker_that_is_away_is_said_once_and_given_up_long_after_the_end(domain: Domain, clock: Clock) -> None:
    job = submitted(domain)
    for wait in (*tracking.WAITS, tracking.WAITS[-1]):
        record(domain.database, taken(domain), None, "Connection refused")
        clock.now += wait - 1
        assert take_due(domain.database, "mlflow", 10) == []
        clock.now += 1
    domain.run_all()
    assert domain.view(job).job.status == "succeeded"
    (away,) = said(domain, job)
    assert away == "MLflow cannot be told of this job: Connection refused. The job goes on, and it is tried again."
    clock.now += tracking.GIVEN_UP
    record(domain.database, taken(domain), None, "Connection refused")
    assert said(domain, job)[1:] == ["MLflow could not be told of this job: Connection refused."]
    clock.now += tracking.GIVEN_UP
    assert take_due(domain.database, "mlflow", 10) == []


def test_a_job_that_is_run_again_is_told_again(domain: Domain) -> None:
    job = submitted(domain)
    domain.fail_thrice()
    news = taken(domain)
    assert news.telling is not None
    assert news.telling.status == "failed"
    record(domain.database, news, "run", None)
    service.retry(domain.database, domain.store, OWNER, job)
    again = taken(domain)
    assert again.telling is not None
    assert (again.telling.status, again.telling.run) == ("queued", "run")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_mlflow_itself_is_told_of_a_job_and_a_crash_doubles_nothing(
    domain: Domain, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a process told before it died no value and no run comes twice: in a folder of files, which takes
    everything that it is told."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    allowed = f"mlflow={(tmp_path / 'runs').as_uri()}"
    (tmp_path / "apart").mkdir()
    teller = Teller(domain.database, "mlflow", allowed, tmp_path / "apart")
    job = submitted(domain, allowed)
    claimed = domain.claim()
    told(domain, claimed, (1, 0.9), (2, 0.8))
    (answer,) = teller._answers([taken(domain)])  # and nobody notes it
    assert set(answer) == {"id", "run"}, answer
    told(domain, claimed, (3, 0.7))
    domain.finish(claimed, {"loss": 0.5})
    domain.run_all()
    clock.now += tracking.CLAIM
    teller.tell()
    assert said(domain, job) == [f"MLflow is told of this job, as run {answer['run']}."]
    (run,) = (tmp_path / "runs").glob("*/*/metrics")
    found = {file.relative_to(run).as_posix(): file.read_text() for file in run.rglob("*") if file.is_file()}
    losses = [tuple(map(float, line.split()[1:])) for line in found.pop("sft/loss").splitlines()]
    assert losses == [(0.9, 1), (0.8, 2), (0.7, 3)]
    assert [text.split()[1] for text in found.values()] == ["0.5"], found
    meta = (run.parent / "meta.yaml").read_text()
    assert "run_name: mine" in meta
    assert "status: 3" in meta, "it is finished"
    assert (run.parent / "params" / "sft.batch_size").read_text() == "128"


def test_a_job_shows_its_integrations(app: FastAPI, base_url: str, http: httpx.Client) -> None:
    context = app.state.context
    settings = context.settings.model_copy(update={"trackers": "mlflow"})
    app.state.context = type(context)(**{**vars(context), "settings": settings})
    asked = [{"type": "mlflow", "mlflow": {"experiment": "/Shared/e"}}]
    body = {"model": "tiny", "training_file": "file-train", "integrations": asked}
    made = http.post(str(http.base_url).rstrip("/"), json=body)
    assert made.status_code == 200, made.text
    assert made.json()["integrations"] == asked
    assert http.get(made.json()["id"]).json()["integrations"] == asked
