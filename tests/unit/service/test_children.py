"""Programs beside the service that read what strangers wrote."""

from __future__ import annotations

import sys

import pytest

from service.children import told


def test_a_child_sees_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALLO_DATABASE_URL", "ALLO_BROKER_URL", "ALLO_TEACHER_API_KEY"):
        monkeypatch.setenv(name, "canary")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    found = told([sys.executable, "-c", code], seconds=600, memory=2**30)
    assert "canary" not in found.values()
    assert found["HF_HUB_OFFLINE"] == "1"
