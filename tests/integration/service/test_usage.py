"""What an owner takes, and lists of models, on both databases."""

from __future__ import annotations

from service.jobs.data.usage import count_active, read_usage
from service.jobs.registry import models
from service.jobs.tables import Stage
from tests.integration.service.domain import OWNER, SUPERVISED, Domain


def test_time_counts_by_workers_and_by_devices_and_what_was_reused_not_at_all(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    claimed = domain.claim()
    with domain.database.transaction() as session:
        stage = session.get(Stage, claimed.stage_id)
        assert stage is not None
        stage.started_at, stage.devices = domain.database.now() - 100, ["0", "1"]
    assert (count_active(domain.database, OWNER), read_usage(domain.database, OWNER).stages) == (1, [])
    domain.finish(claimed)
    domain.run_all()
    domain.submit(SUPERVISED)
    domain.run_all()
    found = read_usage(domain.database, OWNER)
    sft, evaluate = found.stages
    assert (sft.name, sft.count, evaluate.count) == ("sft", 1, 1), "the second job reused both"
    assert 100 <= sft.seconds <= 100 + evaluate.seconds + 60
    assert sft.device_seconds == 2 * sft.seconds
    assert (found.jobs, found.shares["results of jobs"]) == ({"succeeded": 2}, domain.data.size)
    assert read_usage(domain.database, "stranger").stages == []


def test_models_that_jobs_made_are_listed_newest_first_and_go_on_behind_any(domain: Domain) -> None:
    for _ in range(2):
        domain.submit(SUPERVISED)
        domain.run_all()
    every, more = models.read_made(domain.database, OWNER, "", None, 10)
    assert (len(every), more) == (4, False)
    first, more = models.read_made(domain.database, OWNER, "FT:", None, 3)
    rest, end = models.read_made(domain.database, OWNER, "ft:", first[-1].id, 3)
    assert ([row.id for row in (*first, *rest)], more, end) == ([row.id for row in every], True, False)
    assert models.read_made(domain.database, "stranger", "", None, 10) == ([], False)
    assert [row.id for row in models.read_registered(domain.database, OWNER, "IN", 10)] == ["tiny"]
