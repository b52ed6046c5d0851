"""The figures of a training as series: JSON, CSV and TensorBoard's files, of a day of training too."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from allo_engine.held import own_bytes
from service.jobs import series
from service.jobs.running import attempts
from tests.integration.service.domain import OWNER, SUPERVISED, Domain


def trained(served: Domain) -> str:
    """A job whose first stage told of three steps, of which the second ran twice."""
    job = served.submit(SUPERVISED).job.id
    claimed = served.claim()
    for step, loss in ((1, 0.9), (2, 0.8), (2, 0.7), (3, 0.6)):
        data = {"step": step, "steps": 3, "total": 30, "loss": loss, "learning_rate": 1e-5}
        attempts.record_message(
            served.database, claimed.stage_id, claimed.epoch, "info", f"Step {step}.", data, type="metrics"
        )
    return job


def test_a_trainings_figures_are_series(http: httpx.Client, served: Domain) -> None:
    job = trained(served)
    found = http.get(f"{job}/metrics", params={"stage": "sft"}).json()["data"]
    assert [(point["step"], point["metrics"]["loss"]) for point in found] == [(1, 0.9), (2, 0.7), (3, 0.6)]
    assert http.get(f"{job}/metrics", params={"stage": "evaluate"}).json()["data"] == []
    wrong = http.get(f"{job}/metrics", params={"stage": "sfft"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (404, "stage")
    rows = list(csv.DictReader(io.StringIO(http.get(f"{job}/metrics", params={"format": "csv"}).text)))
    assert [(row["stage"], row["step"], row["loss"]) for row in rows][1] == ("sft", "2", "0.7")
    part = http.get(f"{job}/metrics", params={"format": "csv"}, headers={"range": "bytes=0-4"})
    assert (part.status_code, part.text, part.headers["content-type"]) == (206, "stage", "text/csv; charset=utf-8")


def test_tensorboard_reads_its_event_file(http: httpx.Client, served: Domain, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = trained(served)
    answer = http.get(f"{job}/metrics", params={"format": "tensorboard"})
    name = answer.headers["content-disposition"].rpartition("''")[2]
    (tmp_path / name).write_bytes(answer.content)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"sft/loss", "sft/learning_rate"}
    losses = [(scalar.step, pytest.approx(scalar.value)) for scalar in read.Scalars("sft/loss")]
    assert losses == [(1, 0.9), (2, 0.7), (3, 0.6)]


COUNT = 30_000
"""Points that a stage tells in eight hours: one a second."""

TELL = """
WITH RECURSIVE steps(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM steps WHERE step < :count)
INSERT INTO events (id, job_id, seq, created_at, level, type, message, data)
SELECT 'ftevent-' || step, :job, step + 10, step, 'info', 'metrics', '',
       {}('stage', 'sft', 'step', step, 'steps', CAST(:count AS INTEGER), 'loss', 0.5, 'learning_rate', 1e-5,
          'margin', 0.1)
FROM steps
"""


def test_a_long_trainings_points_are_never_held_all_at_once(served: Domain) -> None:
    """All of them would take 90 MB."""
    job = served.submit(SUPERVISED).job.id
    made_by = {"sqlite": "json_object", "postgresql": "json_build_object"}[served.database.engine.dialect.name]
    with served.database.transaction() as session:
        session.execute(text(TELL.format(made_by)), {"job": job, "count": COUNT})
    before = own_bytes()
    found = series.read(served.database, OWNER, job, "sft")
    most, sent = own_bytes(), 0
    for piece in series.as_event_file(found):
        sent += len(piece)
        most = max(most, own_bytes())
    assert len(found.seqs) == COUNT
    assert sent > 50 * COUNT
    assert most - before < 30e6
