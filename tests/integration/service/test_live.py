"""Live events, over real connections."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from service.api.live import Feed
from service.db import Database
from service.jobs import repository, service, story
from service.jobs.access import keys
from service.jobs.access.keys import create_key
from service.jobs.progression import add_event
from service.server import Bounds, Server, config
from tests import asking
from tests.e2e.jobs import streamed as streamed_by
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.waiting import PATIENCE, until

STREAM = {"accept": "text/event-stream"}


class Reader:
    """A stream read in a thread of its own: `events` so far, `notes` between them, whether it has `ended`, and whether
    it was `broken` off."""

    def __init__(self, response: httpx.Response) -> None:
        self.events: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.notes: list[str] = []
        self.ended, self.broken = threading.Event(), False
        self._response = response
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self._response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "data":
                    self.events.append(json.loads(value))
                elif name == "id":
                    self.ids.append(value)
                elif line:
                    self.notes.append(line)
        except (httpx.ReadError, httpx.RemoteProtocolError, httpx.StreamClosed):
            self.broken = True
        self.ended.set()

    def join(self) -> None:
        self._thread.join()


@contextmanager
def streamed(http: httpx.Client, job: str, **headers: str) -> Iterator[Reader]:
    with http.stream("GET", f"{job}/events", headers=STREAM | headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = Reader(response)
        yield reader
        with suppress(OSError):  # closing alone would not wake the thread that reads
            response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        reader.join()


def events_of(domain: Domain, job: str) -> list[str]:
    return [event.id for event in domain.events(job)]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("TEXT/Event-Stream", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream;q=0.1", "text/event-stream"),
        ("text/event-stream;q=0, */*", "application/json"),
        ("application/json", "application/json"),
    ],
)
def test_a_stream_is_for_those_who_take_one(http: httpx.Client, served: Domain, accept: str, kind: str) -> None:
    job = served.submit(SUPERVISED).job.id
    with http.stream("GET", f"{job}/events", headers={"accept": accept}) as response:
        assert response.headers["content-type"].partition(";")[0] == kind


def test_a_stream_tells_every_event_in_order_and_ends_with_the_job(http: httpx.Client, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    with streamed(http, job) as reader:
        until(lambda: reader.events)
        claimed = served.claim()
        with served.database.transaction() as session:
            row = repository.lock_job(session, job)
            assert row is not None
            for step in range(700):  # more than are read at a time
                add_event(session, row, 0, "info", f"{step}", {})
        served.finish(claimed)
        served.run_all()
        assert reader.ended.wait(PATIENCE)
    assert [event["seq"] for event in reader.events] == list(range(1, len(reader.events) + 1))
    assert reader.ids == events_of(served, job) == [event["id"] for event in reader.events]
    assert reader.events[-1]["data"] == {"status": "succeeded"}


def test_a_cut_stream_goes_on_behind_its_last_event_without_a_gap(http: httpx.Client, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    with streamed(http, job) as first:
        until(lambda: first.events)
    served.run_all()
    with streamed(http, job, **{"last-event-id": first.ids[-1]}) as second:
        assert second.ended.wait(PATIENCE)
    assert first.ids + second.ids == events_of(served, job)


def test_events_that_happen_between_a_count_and_its_look_are_told_once(
    monkeypatch: pytest.MonkeyPatch, http: httpx.Client, served: Domain
) -> None:
    read_counts = story.read_counts

    def read_and_then_more(database: Database, job_ids: list[str]) -> dict[str, tuple[int, bool]]:
        counts = read_counts(database, job_ids)
        served.run_all()
        return counts

    job = served.submit(SUPERVISED).job.id
    monkeypatch.setattr(story, "read_counts", read_and_then_more)
    with streamed(http, job) as reader:
        assert reader.ended.wait(PATIENCE)
    assert reader.ids == events_of(served, job)


def test_a_stream_of_a_job_that_is_over_is_told_to_stop(http: httpx.Client, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    served.run_all()
    last = events_of(served, job)[-1]
    assert http.get(f"{job}/events", headers=STREAM | {"last-event-id": last}).status_code == 204
    with streamed(http, job) as whole:
        assert whole.ended.wait(PATIENCE)
    assert whole.ids[-1] == last


def test_the_streams_of_a_job_end_when_it_is_deleted(http: httpx.Client, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    with streamed(http, job) as reader:
        until(lambda: reader.events)
        with served.database.transaction():  # between two looks
            service.cancel(served.database, OWNER, job)
            service.delete(served.database, OWNER, job)
        assert reader.ended.wait(PATIENCE)


def test_many_streams_of_one_job_all_see_all_of_it(http: httpx.Client, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    with streamed(http, job) as one, streamed(http, job) as two, streamed(http, job) as three:
        until(lambda: one.events and two.events and three.events)
        served.run_all()
        for reader in (one, two, three):
            assert reader.ended.wait(PATIENCE)
    assert one.ids == two.ids == three.ids == events_of(served, job)


def test_an_event_of_another_job_and_an_absent_job_are_refused(http: httpx.Client, served: Domain) -> None:
    job, other = served.submit(SUPERVISED).job.id, served.submit(SUPERVISED).job.id
    wrong = http.get(f"{job}/events", headers=STREAM | {"last-event-id": events_of(served, other)[0]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (404, "Last-Event-ID")
    assert http.get("ftjob-absent/events", headers=STREAM).status_code == 404


def test_another_owners_job_has_no_stream(base_url: str, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    headers = STREAM | {"authorization": f"Bearer {create_key(served.database, 'stranger').secret}"}
    assert asking.get(f"{base_url}/fine_tuning/jobs/{job}/events", headers=headers).status_code == 404
    assert asking.get(f"{base_url}/fine_tuning/jobs/{job}/metrics", headers=headers).status_code == 404


def test_owasp_api4_an_owner_has_so_many_streams_and_gets_them_back(
    app: FastAPI, http: httpx.Client, served: Domain
) -> None:
    app.state.context.streams._most = 1
    job = served.submit(SUPERVISED).job.id
    with streamed(http, job) as reader:
        until(lambda: reader.events)
        refused = http.get(f"{job}/events", headers=STREAM)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"]
    until(lambda: not app.state.context.streams._open[OWNER])
    with streamed(http, job) as again:
        until(lambda: again.events)


def test_a_quiet_stream_says_that_it_lives_and_ends_when_its_key_is_revoked(
    monkeypatch: pytest.MonkeyPatch, base_url: str, served: Domain
) -> None:
    monkeypatch.setattr("service.api.live.HEARTBEAT_SECONDS", 0.05)
    key = create_key(served.database, OWNER)
    job = served.submit(SUPERVISED).job.id
    headers = {"authorization": f"Bearer {key.secret}"}
    with (
        httpx.Client(base_url=f"{base_url}/fine_tuning/jobs/", headers=headers, timeout=PATIENCE) as http,
        streamed(http, job) as reader,
    ):
        until(lambda: ": still here" in reader.notes)
        keys.revoke_key(served.database, key.id)
        assert reader.ended.wait(PATIENCE)


def test_the_openai_clients_own_reader_takes_a_stream_with_its_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, base_url: str, secret: str, served: Domain
) -> None:
    """It takes every empty line for the end of an event, also behind a comment."""
    monkeypatch.setattr("service.api.live.HEARTBEAT_SECONDS", 0.01)
    job = served.submit(SUPERVISED).job.id
    with openai.OpenAI(base_url=base_url, api_key=secret) as client:
        events = streamed_by(client, job)
        found = [next(events).id]
        time.sleep(0.1)
        served.run_all()
        found += [event.id for event in events]
    assert found == events_of(served, job)


def test_streams_end_as_they_should_when_the_service_is_told_to_stop(app: FastAPI, served: Domain, secret: str) -> None:
    job, server = served.submit(SUPERVISED).job.id, Server(config(app, Bounds(), port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    jobs, headers = f"http://127.0.0.1:{port}/v1/fine_tuning/jobs/", {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=jobs, headers=headers, timeout=PATIENCE) as http, streamed(http, job) as reader:
        until(lambda: reader.events)
        server.handle_exit(signal.SIGTERM, None)
        assert reader.ended.wait(PATIENCE)
        assert not reader.broken
    thread.join()


def test_who_ends_the_service_does_not_wait_for_the_next_look(monkeypatch: pytest.MonkeyPatch, served: Domain) -> None:
    monkeypatch.setattr("service.api.live.LOOK_SECONDS", 10 * PATIENCE)

    async def ended() -> None:
        feed = Feed(served.database)
        looking = asyncio.create_task(feed.run())
        await asyncio.sleep(0)
        feed.close()
        await asyncio.wait_for(looking, PATIENCE)

    asyncio.run(ended())


def test_a_job_that_is_read_back_has_its_events_where_its_stream_left_it(served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    first = served.events(job)[0]
    assert story.read_place(served.database, OWNER, job, first.id) == (1, False)
    assert story.read_place(served.database, OWNER, job, None) == (0, False)
