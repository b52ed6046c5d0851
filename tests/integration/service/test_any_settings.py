"""Whatever JSON stands where a setting may stand: it is taken or refused, and never an error of ours."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allo_engine.config import CONFIGS
from allo_engine.pipeline import METHODS
from service.jobs import service
from service.jobs.repository import Page
from tests.integration.service.domain import OWNER, Domain

JOBS = "/v1/fine_tuning/jobs"

FIELDS = sorted({name for config in CONFIGS.values() for name in config.model_fields} | {"learning_rate_multiplier"})
TEXTS = ["auto", "inf", "nan", "-1", "1e400", "9" * 500, "\0", "\u2028", "", "0x10", "true"]
NUMBERS = [10**400, -(2**63), 2**64, 1e308, -0.0]
LEAVES = (
    st.sampled_from([*TEXTS, *NUMBERS, None, True])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
)


def inside(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


VALUES = st.recursive(LEAVES, inside, max_leaves=6)
SETTINGS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), VALUES, max_size=4)
STAGES = st.dictionaries(st.sampled_from(sorted(CONFIGS)) | st.text(max_size=8), SETTINGS | st.none(), max_size=3)


@pytest.fixture
def client(app: FastAPI, secret: str) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(METHODS), stages=STAGES, shorthand=SETTINGS, old=SETTINGS)
def test_settings_are_taken_or_refused(
    client: TestClient, served: Domain, method: str, stages: Any, shorthand: Any, old: Any
) -> None:
    body = {"model": "tiny", "training_file": "file-train", "hyperparameters": old}
    body["method"] = {"type": method, method: {"stages": stages, "hyperparameters": shorthand}}
    answer = client.post(JOBS, json=body)
    assert answer.status_code in (200, 404, 422), answer.text  # 404: a rewriter that there is not
    if answer.status_code == 200:
        job = answer.json()
        assert client.get(f"{JOBS}/{job['id']}").json()["method"] == job["method"]
        service.cancel(served.database, OWNER, job["id"])
        assert service.read_page(served.database, OWNER, Page(1))[0]
