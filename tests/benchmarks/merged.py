"""Weights that are merged from a base and a sparse checkpoint while they are sent, against copy + fsync + sha256 of as
many bytes, and against the same weights where they are stored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy import update

from allo_engine.checkpoints.delta import FILE, describe, write_delta
from allo_engine.checkpoints.recipe import DESCRIBED, Recipe
from service.jobs.tables import Artifact
from service.storage import Blob, open_store
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.service import fill
from tests.benchmarks.serving import Place, opened, served
from tests.benchmarks.transfers import DISK, copied, copying, fetch

WEIGHTS, VALUES, MASK = 8, 2**24, 0.03
SIZE = WEIGHTS * VALUES * 4


def merged() -> Figures:
    return _downloaded(stored=False)


def stored() -> Figures:
    return _downloaded(stored=True)


def copy() -> Figures:
    return {"download": copied(SIZE)["upload"]}  # the first one, behind what was written for it


def _downloaded(stored: bool) -> Figures:
    """MB/s of a download that is hashed, of weights that are merged, or were before."""
    with _made() as (place, blob):
        store = open_store(place.settings.store)
        if stored:
            store.put_stream(store.open(blob.sha256))
        with served(place.settings) as server, TemporaryDirectory() as folder:
            server.rest()
            began = time.perf_counter()
            path = "/v1/artifacts/artifact-stage-00000000-0/content"
            assert fetch(server, place.key, path, Path(folder) / "back") == blob.sha256
            return {"download": blob.size / (time.perf_counter() - began) / 1e6}


@contextmanager
def _made() -> Iterator[tuple[Place, Blob]]:
    """A service with a job whose first artifact is merged weights, and what they are."""
    random = np.random.default_rng(0)
    with opened() as place, TemporaryDirectory() as folder:
        base, delta, described = (Path(folder) / name for name in ("base", "delta", "described"))
        base.mkdir()
        weights = {f"w{n}": random.standard_normal(VALUES, dtype=np.float32) for n in range(WEIGHTS)}
        save_file(weights, base / "model.safetensors")
        write_delta({name: _moved(weight, random) for name, weight in weights.items()}, base, delta)
        describe(base, delta, described)
        (found,) = json.loads((described / DESCRIBED).read_text())
        blob, store = Blob(found["sha256"], found["bytes"]), open_store(place.settings.store)
        store.take(base / "model.safetensors")
        store.take(delta / FILE)
        store.derive(blob, Recipe.of(found))
        fill(place.database, 1)
        with place.database.transaction() as session:
            session.execute(update(Artifact).values(sha256=blob.sha256, bytes=blob.size))
        yield place, blob


def _moved(weight: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """A random mask's entries, each a little off."""
    places = np.flatnonzero(random.random(len(weight), dtype=np.float32) < MASK)
    return places, weight[places] * np.float32(1.0001)


CASES = (
    Case("download of merged weights, MB/s", merged, copy, copying, 1.0, True, DISK, "download"),
    Case("the same", merged, stored, lambda: "the same weights, stored", 0.8, True, DISK, "download"),
)
