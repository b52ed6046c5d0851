"""Submitting: refused before it starts, or accepted exactly once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from allo_engine.pipeline import PlanError
from service.jobs import service
from service.jobs.errors import DomainError, InvalidRequest, NotFound, TooMany
from service.jobs.repository import Page
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain


def count(domain: Domain) -> int:
    return len(service.read_page(domain.database, OWNER, Page(1000))[0])


def test_an_owner_has_a_limit_of_unfinished_jobs(domain: Domain) -> None:
    sender = domain.sender(max_active_jobs=1)
    first = domain.submit(SUPERVISED, sender).job.id
    with pytest.raises(TooMany):
        domain.submit(SUPERVISED, sender)
    service.cancel(domain.database, OWNER, first)
    domain.submit(SUPERVISED, sender)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nobody"}, NotFound, "model"),
        ({"model": "https://example.com/model"}, InvalidRequest, "model"),
        ({"model": "../../etc"}, InvalidRequest, "model"),
        ({"training_file": "file-none"}, NotFound, "training_file"),
        ({"validation_file": "file-none"}, NotFound, "validation_file"),
        ({"training_file": "file-bad"}, InvalidRequest, "training_file"),
        ({"training_file": "file-report"}, InvalidRequest, "training_file"),
        ({"training_file": "file-expired"}, NotFound, "training_file"),
        ({"validation_file": "file-chats"}, PlanError, "validation_file"),
        ({"corrections_file": "file-train"}, InvalidRequest, "corrections_file"),
        ({"retention_file": "file-none"}, NotFound, "retention_file"),
        ({"retention_file": "file-chats", "validation_file": None}, PlanError, "retention_file"),
        ({"masks": "ftjob-none"}, NotFound, "masks"),
        ({"masks": "art-none"}, NotFound, "masks"),
        ({"masks": "file-train"}, NotFound, "masks"),
        ({"stages": {"locate": {"forget_ratio": 0}}}, PlanError, "method.allo.stages.locate.forget_ratio"),
        ({"stages": {"locate": {"improve_ratio": 1.5}}}, PlanError, "method.allo.stages.locate.improve_ratio"),
        ({"stages": {"locate": {"ratio": 0.5}}}, PlanError, "method.allo.stages.locate.ratio"),
        ({"stages": {"dream": {}}}, PlanError, "method.allo.stages.dream"),
        ({"hyperparameters": {"zeta": 1}}, PlanError, "method.allo.hyperparameters.zeta"),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(
    domain: Domain, change: dict[str, Any], error: type[DomainError | PlanError], param: str
) -> None:
    domain.add_file("file-chats", "chats")
    domain.add_file("file-bad", status="error", status_details="1 problem: line 1.")
    domain.add_file("file-report", purpose="fine-tune-results")
    domain.add_file("file-expired", expires_at=1)
    with pytest.raises(error) as raised:
        domain.submit(replace(ALLO, **change))
    assert raised.value.param == param
    assert count(domain) == 0


def test_metadata_finds_jobs(domain: Domain) -> None:
    mine = domain.submit(replace(SUPERVISED, metadata={"team": "a", "run": "1"})).job.id
    domain.submit(replace(SUPERVISED, metadata={"team": "b"}))
    domain.submit(SUPERVISED)
    found, more = service.read_page(domain.database, OWNER, Page(), {"team": "a", "run": "1"})
    assert ([view.job.id for view in found], more) == ([mine], False)
