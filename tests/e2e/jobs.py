"""A job as the tests ask for it and wait for it, with the unmodified openai client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJobEvent

from tests.waiting import until


def submit(
    client: openai.OpenAI, files: dict[str, str], kind: str, stages: dict[str, Any], seed: int = 1, **more: Any
) -> str:
    method = {"type": kind, kind: {"stages": stages}}
    job = client.fine_tuning.jobs.create(model="tiny", seed=seed, **files, extra_body={"method": method, **more})
    return str(job.id)


def stages_of(client: openai.OpenAI, job_id: str) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in client.fine_tuning.jobs.retrieve(job_id).model_extra["stages"]}


def streamed(client: openai.OpenAI, job_id: str) -> Iterator[FineTuningJobEvent]:
    """The job's events as they happen, by the client's own reader of streams."""
    yield from client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        options={"headers": {"accept": "text/event-stream"}},
    )


def wait(client: openai.OpenAI, job_id: str, reached: Callable[[], bool]) -> None:
    def come_to_it() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status != "failed", job.error
        return reached()

    until(come_to_it)


def status_is(client: openai.OpenAI, job_id: str, *wanted: str) -> Callable[[], bool]:
    return lambda: client.fine_tuning.jobs.retrieve(job_id).status in wanted
