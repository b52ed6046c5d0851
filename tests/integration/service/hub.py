"""A service with one finished job, as the clients of the Hugging Face Hub see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from huggingface_hub import HfApi
from starlette.types import ASGIApp

from allo_engine.pipeline import OUTPUTS
from service.app import create_app
from service.jobs.access.keys import create_key
from service.jobs.running import attempts, dispatch
from service.jobs.submission import NewJob
from service.migrating import migrate
from service.settings import Settings
from service.storage.store import Blob, Store
from tests import asking
from tests.apps import on_a_port
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import OWNER, Domain, furnish
from tests.tiny import save_tiny

FIGURES = {"base_accuracy": 0.1, "improve_accuracy": 0.5, "improve_accuracy_low": 0.4, "improve_accuracy_high": 0.6}


@dataclass(frozen=True)
class Hub:
    """A service with one finished job, whose every checkpoint is a tiny model of its own."""

    endpoint: str
    token: str
    stranger: str
    job: str
    models: dict[str, Path]
    domain: Domain
    app: FastAPI

    @property
    def repository(self) -> str:
        return f"jobs/{self.job}"

    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return asking.get(f"{self.endpoint}{path}", headers={"authorization": f"Bearer {self.token}", **headers})


@contextmanager
def serving(root: Path, hidden: int = 32) -> Iterator[Hub]:
    """Such a service, whose models have hidden states of this size."""
    settings = Settings(data_dir=root / "data", min_free_bytes=0)
    (root / "data").mkdir()
    migrate(settings.database)
    app = create_app(settings, SilentBroker())
    domain = furnish(app.state.context.database, app.state.context.store)
    stages = ("sft", "warmup", "forget", "improve")
    models = {stage: save_tiny(root / stage, seed, hidden=hidden) for seed, stage in enumerate(stages)}
    settings_of_stages = {"sft": {"n_epochs": 2}, "improve": {"beta": 0.3}}
    new = NewJob("tiny", "file-train", "file-heldout", method="allo", stages=settings_of_stages, suffix="mine")
    job = domain.submit(new).job.id
    run(domain, {stage: stored(domain.store, folder) for stage, folder in models.items()})
    keys = [create_key(domain.database, owner, ("read",)).secret for owner in (OWNER, "stranger")]
    with listening(app) as url:
        yield Hub(url, *keys, job, models, domain, app)
    app.state.context.close()


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The app behind a real server on this machine; its URL."""
    with on_a_port(app, lifespan="off") as port:
        yield f"http://127.0.0.1:{port}"


def stored(store: Store, folder: Path) -> list[tuple[str, Blob]]:
    return [(path.name, store.put(path)) for path in sorted(folder.iterdir())]


def run(domain: Domain, checkpoints: dict[str, list[tuple[str, Blob]]]) -> None:
    """Every stage to its end."""
    while rings := dispatch.ready_stages(domain.database):
        assert dispatch.place(domain.database, domain.store, rings[0].stage_id, rings[0].epoch, "worker")
        claim = attempts.claim(domain.database, rings[0].stage_id, rings[0].epoch, "worker")
        assert claim is not None
        data = [("data.bin", domain.data)]
        files = [
            (output, path, blob.sha256, blob.size)
            for output in OUTPUTS[claim.kind]
            for path, blob in (checkpoints.get(claim.name, data) if output == "checkpoint" else data)
        ]
        metrics = FIGURES if claim.name == "evaluate" else {}
        assert attempts.finish(domain.database, domain.store, claim.stage_id, claim.epoch, files, metrics)
