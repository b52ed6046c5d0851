"""The houses that the worker's tests run in."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.integration.worker.house import House, furnish
from tests.parts import Parts
from tests.waiting import PATIENCE
from worker.engine import DEFAULT_COMMAND
from worker.starting import Warm

QUICK = {"heartbeat_seconds": 0.2, "redispatch_seconds": 2, "dispatch_seconds": 0.1}
QUICK |= {"self_fence_seconds": PATIENCE, "lease_seconds": 2 * PATIENCE}  # who is slow is not taken for dead
SHORT_LEASE = {"self_fence_seconds": 8, "lease_seconds": 10, "grace_seconds": 2}

COLD = (sys.executable, str(Path(__file__).with_name("stub_engine.py")))
WARM = (sys.executable, "-m", "tests.integration.worker.stub_engine")


@contextmanager
def building(root: Path, parts: Parts) -> Iterator[Callable[..., House]]:
    """Makes a house with these settings and this trainer, in a folder of this name."""
    houses: list[House] = []
    made = ExitStack()

    def make(name: str = "data", program: tuple[str, ...] = COLD, **settings: Any) -> House:
        control = root / f"{name}-control"
        control.mkdir()
        engine = shlex.join([*program, str(control)])
        houses.append(
            furnish(
                Settings(data_dir=root / name, engine=engine, **QUICK | made.enter_context(parts()) | settings),
                control,
            )
        )
        return houses[-1]

    yield make
    for house in houses:
        house.database.close()
    made.close()


@pytest.fixture
def make_house(tmp_path: Path, parts: Parts) -> Iterator[Callable[..., House]]:
    with building(tmp_path, parts) as make:
        yield make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A warm process with the stub trainer."""
    warm = Warm(WARM)
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Warm]:
    """A warm process with the real engine."""
    warm = Warm(DEFAULT_COMMAND)
    yield warm
    warm.close()
