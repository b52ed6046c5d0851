"""Where trackers may be, and what is told of one that fails."""

from __future__ import annotations

from typing import Any

import pytest

from service.jobs.access.trackers import check, place
from service.jobs.errors import InvalidRequest
from service.trackers.__main__ import _reason

ALLOWED = "mlflow=http://127.0.0.1:1,mlflow=sqlite:////b,wandb,trackio=org/space"


@pytest.mark.parametrize(
    ("kind", "settings", "allowed", "param", "words"),
    [
        ("mlflow", {}, "", "mlflow", "no tracker; its operator allows mlflow with ALLO_TRACKERS"),
        ("mlflow", {"tracking_uri": "http://169.254.169.254/"}, ALLOWED, "mlflow.tracking_uri", "no such place"),
        ("mlflow", {"tracking_uri": "http://127.0.0.1:1/"}, "mlflow", "mlflow.tracking_uri", "no such place"),
        ("trackio", {"space": "mine/own"}, ALLOWED, "trackio.space", "no such place"),
        ("wandb", {}, "mlflow", "wandb", "tells jobs to mlflow"),
    ],
)
def test_owasp_api7_a_job_leads_the_service_nowhere(
    kind: str, settings: dict[str, Any], allowed: str, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        check([{"type": kind, kind: settings}], allowed)
    assert refused.value.param == f"integrations.0.{param}"


def test_a_job_chooses_among_the_operators_places_and_gets_the_first_otherwise() -> None:
    assert place("mlflow", {}, ALLOWED) == "http://127.0.0.1:1"
    assert place("mlflow", {"tracking_uri": "sqlite:////b"}, ALLOWED) == "sqlite:////b"
    assert place("wandb", {"project": "p"}, ALLOWED) is None
    assert place("trackio", {}, ALLOWED) == "org/space"


def test_a_tracker_is_named_once() -> None:
    twice = [{"type": "mlflow", "mlflow": {"experiment": name}} for name in "ab"]
    with pytest.raises(InvalidRequest, match="named twice"):
        check(twice, ALLOWED)


def test_a_reason_names_neither_the_operators_place_nor_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    where = "http://name:secret@10.0.0.1:5000"
    said = f"{where}/api said\n no to hunter2, as 10.0.0.1 (host='10.0.0.1:5000')" + "x" * 500
    reason = _reason(ValueError(said), where)
    assert reason.startswith("ValueError: …/api said no to …, as … (host='…:5000')x")
    assert len(reason) == 200
    refused = RuntimeError(f"no way to {where}")
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert _reason(refused, where) == "Connection refused"
