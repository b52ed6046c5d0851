"""The client of the command line against the service."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service import client as ours
from service.client import Client
from service.jobs import service
from tests.integration.service.domain import OWNER, SUPERVISED, Domain


def test_jobs_of_a_status_are_found_behind_any_number_of_newer_ones(
    base_url: str, served: Domain, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "PAGE", 2)
    old, *_, new = [served.submit(replace(SUPERVISED, seed=seed)).job.id for seed in range(6)]
    service.cancel(served.database, OWNER, old)
    with Client(base_url.removesuffix("/v1"), secret) as client:
        assert [job["id"] for job in client.jobs(status="cancelled")] == [old]
        assert [job["id"] for job in client.jobs(limit=1)] == [new]
        assert len(client.jobs(limit=5, status="queued")) == 5
        assert client.jobs(status="failed") == []
