"""What goes wrong while a stage runs, as the job's owner reads it: what happened, and what the service did about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.jobs.access.keys import create_key
from tests.integration.service.conftest import SilentBroker
from tests.integration.worker.house import OWNER, House
from worker.outcome import Failed, Outcome, Released
from worker.runner import Runner


def run(house: House, job: str) -> Outcome | None:
    """One attempt, by a worker that drains once it waits for room."""

    def waits() -> bool:
        return any("disk is full" in event.message for event in house.events(job))

    return Runner(house.settings, house.database, house.store, waits, house.start).run(*house.dispatch())


@pytest.fixture
def told(make_house: Callable[..., House]) -> Iterator[Callable[[House, str], list[tuple[str, str]]]]:
    """The levels and messages of a job's events, the first first, as the API has them."""
    apps = []

    def read(house: House, job: str) -> list[tuple[str, str]]:
        apps.append(app := create_app(house.settings, SilentBroker()))
        key = create_key(house.database, OWNER, ("read",)).secret
        client = TestClient(app, headers={"authorization": f"Bearer {key}"})
        events = client.get(f"/v1/fine_tuning/jobs/{job}/events").json()["data"]
        return [(event["level"], event["message"]) for event in reversed(events)]

    yield read
    for app in apps:
        app.state.context.close()


AGAIN = "Stage sft: attempt 1 ended; another one goes on from its last checkpoint. "


@pytest.mark.parametrize(
    ("deed", "attempts", "level", "words"),
    [
        ("error:out_of_memory", 1, "warn", AGAIN + r"Said by the engine\."),
        ("error:diverged", 1, "error", r"Stage sft failed\. Said by the engine\."),
        (
            "hang",
            1,
            "warn",
            r"Stage sft: attempt 1 ended; another one goes on from its .*\. The training made no progress for \d+",
        ),
        ("oom", 1, "warn", AGAIN + r"The training process was killed \(SIGKILL\)"),
        ("crash", 1, "warn", AGAIN + r"The training process ended with exit status 1"),
        (
            "crash",
            3,
            "error",
            r"Stage sft failed\. 3 attempts ended with no progress between them, and there is no other\. The training "
            r"process ended with exit status 1 .* Its last words:\n.*the stub crashed",
        ),
        (
            "error:disk_full",
            1,
            "warn",
            r"The worker's disk is full \(\d+ MB are free\): the stage waits until there is room, and then goes on by "
            r"itself\.",
        ),
    ],
    ids=["memory", "divergence", "stall", "kill", "crash", "poison", "disk"],
)
def test_a_fault_is_told_with_what_was_done_about_it(
    make_house: Callable[..., House],
    told: Callable[[House, str], list[tuple[str, str]]],
    deed: str,
    attempts: int,
    level: str,
    words: str,
) -> None:
    house = make_house(stall_seconds=2 if deed == "hang" else 0)
    house.behave(before={"2": deed})
    job = house.submit()
    for _ in range(attempts):
        assert isinstance(run(house, job), Failed | Released)
    found = told(house, job)
    assert any(one == level and re.match(words, message, re.DOTALL) for one, message in found), found


def test_a_stage_without_a_checkpoint_is_said_to_begin_again(make_house: Callable[..., House], told: Any) -> None:
    house = make_house()
    house.behave(before={"1": "crash"})
    job = house.submit()
    run(house, job)
    assert "another one goes on from its start" in told(house, job)[-1][1]
