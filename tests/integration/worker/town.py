"""A service whose worker only answers: a real web server, broker and serving process, a tiny model and a job's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import openai
import psutil
import torch
from fastapi import FastAPI
from openai import OpenAI
from redis import Redis
from transformers import AutoModelForCausalLM

from allo_engine.checkpoints.delta import describe, merge, write_delta
from allo_engine.data.prompts import Encoder
from service.app import create_app
from service.brokers import for_redis
from service.embedded import broker_url
from service.jobs.access.keys import create_key
from service.jobs.running import workers
from service.jobs.tables import Model
from service.settings import Settings
from tests.apps import on_a_port
from tests.integration.worker.house import OWNER, House, furnish
from tests.integration.worker.processes import Valkey
from tests.tiny import save_tiny
from tests.unit.engine.checkpoints.test_delta import some_values
from tests.waiting import PATIENCE
from worker.offer import offer
from worker.workspace import _derived

HELLO: Any = [{"role": "user", "content": "Hello!"}]
ALIGNED = "ft:tiny:first:00000001"


@dataclass
class Town:
    """A service whose worker only answers."""

    house: House
    app: FastAPI
    url: str
    folders: dict[str, Path]
    serving: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, owner: str = OWNER, *scopes: Any) -> OpenAI:
        key = create_key(self.house.database, owner, scopes or ("read",)).secret
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def serve(self) -> None:
        """A serving process, if none is there."""
        if not self.serving or self.serving[-1].poll() is not None:
            environment = os.environ | self.house.settings.to_environment()
            with (self.house.settings.data_dir / "serving.log").open("ab") as log:
                command = [sys.executable, "-m", "worker.serving", self.house.worker]
                self.serving.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def kept(self) -> int:
        """Answers that somebody waits for, as far as the broker knows."""
        with Redis.from_url(for_redis(self.house.settings.broker_url)) as broker:
            return len(broker.keys("stages.chat.answer.*"))

    def model_process(self) -> psutil.Process | None:
        found = psutil.Process(self.serving[-1].pid).children()
        return found[0] if found else None

    def generated(self, model: str, tokens: int) -> str:
        """What transformers answers to HELLO."""
        encoder, ids = Encoder.of(self.folders[model]), generated(self.folders[model])
        return encoder.decode(ids[:tokens])


@cache
def generated(folder: Path) -> list[int]:
    prompt, plain = Encoder.of(folder).prompt(HELLO), AutoModelForCausalLM.from_pretrained(folder)
    ids = plain.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False)
    return [int(token) for token in ids[0, len(prompt) :]]


@contextmanager
def opened(root: Path, backend: str = "auto", named: Mapping[str, str] | None = None, **tiny: Any) -> Iterator[Town]:
    """`named`: settings of the parts that are not embedded; `tiny`: what `save_tiny` makes the base with."""
    valkey = Valkey(root / "broker")
    where = {"broker_url": broker_url(root / "broker")} | dict(named or {})
    settings = Settings.model_validate({"data_dir": root / "data", "min_free_bytes": 0, **where})
    settings = settings.model_copy(update={"drain_seconds": 0.5, "lease_seconds": PATIENCE, "devices": ""})
    settings = settings.model_copy(update={"serve_backend": backend})
    settings.open_data_dir()
    house = furnish(settings, root / "control")
    folders = furnish_models(house, root, **tiny)
    workers.beat(house.database, house.worker, "host", offer(settings))
    app = create_app(settings)
    with on_a_port(app) as port:
        town = Town(house, app, f"http://127.0.0.1:{port}", folders)
        town.serve()
        yield town
        for process in town.serving:
            process.terminate()
            process.wait(PATIENCE)
    house.database.close()
    valkey.kill()


def furnish_models(house: House, root: Path, **tiny: Any) -> dict[str, Path]:
    """A base that is everyone's, and what a job made of it: a sparse checkpoint, named by its recipe."""
    base = save_tiny(root / "tiny", **tiny)
    write_delta(some_values(base, share=0.3), base, root / "delta")
    describe(base, root / "delta", root / "described")
    merge(base, root / "delta", root / "merged")
    house.store.put(root / "delta" / "delta.safetensors")
    rows = {"tiny": list(files_of(house, base))}
    derived = [
        {"path": path, "sha256": sha256, "bytes": size}
        for path, sha256, size in _derived(house.store, root / "described" / "merged.json")
    ]
    rows[ALIGNED] = [*files_of(house, root / "described"), *derived]
    with house.database.transaction() as session:
        for name, files in rows.items():
            session.merge(Model(id=name, owner=OWNER if name == ALIGNED else None, created_at=0, files=files))
    return {"tiny": base, ALIGNED: root / "merged"}


def files_of(house: House, folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        if path.name != "merged.json":
            blob = house.store.put(path)
            yield {"path": path.name, "sha256": blob.sha256, "bytes": blob.size}


@contextmanager
def suspended(town: Town) -> Iterator[psutil.Process]:
    """The model's process stands still."""
    process = town.model_process()
    assert process is not None
    process.suspend()
    try:
        yield process
    finally:
        process.resume()


def served(client: OpenAI) -> bool:
    try:
        client.completions.create(model="tiny", prompt="x", max_tokens=1)
    except openai.InternalServerError:
        return False
    return True


def asked(client: OpenAI, model: str, tokens: int = 40, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=tokens, temperature=0, **more)
