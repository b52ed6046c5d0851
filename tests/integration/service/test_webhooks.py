"""Webhooks: managed by the unmodified OpenAI client, brought to real servers, read by the client's own `unwrap`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from service.db import Database
from service.jobs.access import webhooks
from service.jobs.access.keys import create_key
from service.jobs.repository import Page
from service.webhooks.courier import Courier
from service.webhooks.sending import Undelivered, send
from service.webhooks.signing import new_secret
from tests.clock import Clock
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.pages import python
from tests.waiting import until

SUCCEEDED, FAILED = "fine_tuning.job.succeeded", "fine_tuning.job.failed"


class Receiver(ThreadingHTTPServer):
    """A server of the owner's, which answers with `status`; `received` are the headers and bodies of all requests."""

    daemon_threads = True

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.headers = status, headers or {}
        self.received: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        server.received.append((dict(self.headers.items()), body))
        self.send_response(server.status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(status: int = 200, headers: dict[str, str] | None = None) -> Iterator[Receiver]:
    receiver = Receiver(status, headers)
    thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


def ended_job(domain: Domain) -> str:
    job = domain.submit(SUPERVISED).job.id
    domain.run_all()
    return job


def bring(domain: Domain) -> int:
    """Makes every attempt that is due; how many there were."""
    due = webhooks.take_due(domain.database, 100)
    for one in due:
        Courier(domain.database, private=True).deliver(one)
    return len(due)


def log_of(domain: Domain, endpoint: str) -> list[Any]:
    return webhooks.read_deliveries(domain.database, OWNER, endpoint, Page(100))[0]


@pytest.fixture
def public(app: FastAPI) -> None:
    """The operator allows no webhooks into private networks, as by default."""
    context = app.state.context
    settings = context.settings.model_copy(update={"webhook_private": False})
    app.state.context = type(context)(**{**vars(context), "settings": settings})


@pytest.fixture
def client(base_url: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        yield client


def test_the_page_of_clients_shows_how_an_endpoint_is_made_and_how_what_it_is_told_is_read(
    client: OpenAI, served: Domain
) -> None:
    making, _, reading = python("service/clients.md", "Webhooks").partition("event = ")
    known: dict[str, Any] = {"client": client}
    with receiving() as receiver:
        exec(making.replace("https://example.org/hook", receiver.url), known)  # noqa: S102 - our own page
        job = ended_job(served)
        until(lambda: receiver.received)
    ((known["headers"], known["body"]),) = receiver.received
    exec(f"event = {reading}", known)  # noqa: S102 - the receiver's line of it
    hook, event = known["hook"], known["event"]
    assert (hook.name, {*hook.event_types}) == ("mine", {SUCCEEDED, FAILED})
    assert (event.type, event.data.id, event.object) == (SUCCEEDED, job, "event")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(known["body"] + b" ", known["headers"], secret=hook.signing_secret)


def test_the_client_reads_changes_lists_rotates_tests_and_deletes(client: OpenAI) -> None:
    assert client.webhooks.event_types.list().data == [SUCCEEDED, FAILED, "fine_tuning.job.cancelled"]
    with receiving(418) as receiver:
        made = [client.webhooks.create(name=str(n), url=receiver.url, event_types=[FAILED]) for n in range(3)]
        assert [row.name for row in client.webhooks.list(limit=2)] == ["2", "1", "0"]
        first = client.webhooks.update(made[0].id, name="first", event_types=[SUCCEEDED])
        assert (first.name, first.event_types, first.url) == ("first", [SUCCEEDED], receiver.url)
        assert client.webhooks.retrieve(first.id) == first
        assert made[0].signing_secret not in first.model_dump_json()
        tested = client.webhooks.test(first.id, event_type=SUCCEEDED)
        assert (tested.success, tested.status_code) == (True, 418)
        new = client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
        client.webhooks.test(first.id, event_type=FAILED)
        headers, body = receiver.received[-1]
        for secret in (new.signing_secret, made[0].signing_secret):
            assert client.webhooks.unwrap(body, headers, secret=secret).type == FAILED
        assert client.webhooks.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(first.id)
    with pytest.raises(openai.UnprocessableEntityError, match="not delivered"):
        client.webhooks.test(made[1].id, event_type=FAILED)


@pytest.mark.parametrize("mark", ["the client's word", "an Idempotency-Key"])
def test_a_sample_whose_answer_was_lost_is_not_sent_again(client: OpenAI, mark: str) -> None:
    def send(count: int) -> Any:
        headers = {"x-stainless-retry-count": str(count)} if mark == "the client's word" else {"Idempotency-Key": "k"}
        return client.webhooks.test(endpoint, event_type=FAILED, extra_headers=headers)

    with receiving(418) as receiver:
        endpoint = client.webhooks.create(name="x", url=receiver.url, event_types=[FAILED]).id
        first = send(0)
        assert [send(count) for count in (1, 2)] == [first] * 2
        assert len(receiver.received) == 1
        client.webhooks.test(endpoint, event_type=FAILED)
        assert len(receiver.received) == 2, "nothing says that this one is a repetition"


@pytest.mark.usefixtures("public")
def test_owasp_api7_an_endpoint_in_a_private_network_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="private network") as refused:
        client.webhooks.create(name="x", url="https://127.0.0.1/x", event_types=[FAILED])
    assert refused.value.param == "url"
    with pytest.raises(openai.UnprocessableEntityError, match="there are fine_tuning"):
        client.webhooks.create(name="x", url="https://93.184.215.14/x", event_types=["batch.failed"])


def test_another_owners_endpoint_answers_as_an_absent_one(base_url: str, client: OpenAI, served: Domain) -> None:
    mine = webhooks.create(served.database, "owner", "x", "https://93.184.215.14/x", [FAILED], new_secret())
    key = create_key(served.database, "stranger", ("admin",)).secret
    with OpenAI(base_url=base_url, api_key=key, max_retries=0) as stranger:
        assert list(stranger.webhooks.list()) == []
        for verb in (stranger.webhooks.retrieve, stranger.webhooks.delete, stranger.webhooks.rotate_secret):
            with pytest.raises(openai.NotFoundError) as theirs:
                verb(mine.id)
            with pytest.raises(openai.NotFoundError) as absent:
                verb("whend-absent")
            assert str(theirs.value).replace(mine.id, "") == str(absent.value).replace("whend-absent", "")


def test_a_delivery_is_tried_for_a_day_and_then_given_up(domain: Domain, clock: Clock) -> None:
    with receiving(500) as receiver:
        endpoint = webhooks.create(domain.database, OWNER, "x", receiver.url, [SUCCEEDED], new_secret()).id
        ended_job(domain)
        started = clock.now
        while (row := log_of(domain, endpoint)[0]).due_at is not None:
            clock.now = row.due_at - 1
            assert row.attempts == 0 or bring(domain) == 0, "it came too early"
            clock.now = row.due_at
            assert bring(domain) == 1
    assert (row.attempts, row.delivered_at, row.status_code) == (10, None, 500)
    assert clock.now - started >= 24 * 3600
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1, "a repetition has its first id"


@pytest.mark.parametrize(
    ("status", "headers"), [(302, {"location": "http://127.0.0.1:1/"}), (307, {"location": "/x"}), (404, {})]
)
def test_a_redirect_is_not_followed_and_counts_as_a_failure(
    domain: Domain, status: int, headers: dict[str, str]
) -> None:
    with receiving(status, headers) as receiver:
        endpoint = webhooks.create(domain.database, OWNER, "x", receiver.url, [SUCCEEDED], new_secret()).id
        ended_job(domain)
        bring(domain)
        (row,) = log_of(domain, endpoint)
        assert (row.status_code, row.delivered_at, row.due_at is not None) == (status, None, True)
        assert len(receiver.received) == 1


def test_an_endpoint_that_says_gone_is_asked_no_more(domain: Domain) -> None:
    with receiving(410) as receiver:
        endpoint = webhooks.create(domain.database, OWNER, "x", receiver.url, [SUCCEEDED], new_secret()).id
        ended_job(domain)
        assert (bring(domain), bring(domain)) == (1, 0)
        assert log_of(domain, endpoint)[0].due_at is None


def test_what_a_dead_process_took_is_due_again(domain: Domain, clock: Clock) -> None:
    with receiving() as receiver:
        webhooks.create(domain.database, OWNER, "x", receiver.url, [SUCCEEDED], new_secret())
        ended_job(domain)
        (lost,) = webhooks.take_due(domain.database, 10)
        assert webhooks.take_due(domain.database, 10) == [], "it is another's for the time being"
        clock.now += webhooks.CLAIM
        assert bring(domain) == 1
        webhooks.record(domain.database, lost, None, "late", "again")
        assert bring(domain) == 0, "a stale note changes nothing"


def test_a_job_that_fails_tells_once_and_a_forgotten_endpoint_is_told_nothing(domain: Domain) -> None:
    types = [SUCCEEDED, FAILED]
    made = webhooks.create(domain.database, OWNER, "x", "https://93.184.215.14/", types, new_secret()).id
    domain.submit(SUPERVISED)
    assert log_of(domain, made) == []
    domain.fail_thrice()
    assert [row.event_type for row in log_of(domain, made)] == [FAILED]
    webhooks.remove(domain.database, OWNER, made)
    assert webhooks.take_due(domain.database, 10) == []


def test_two_couriers_make_every_delivery_once(database_url: str, domain: Domain) -> None:
    with receiving() as receiver:
        webhooks.create(domain.database, OWNER, "x", receiver.url, [SUCCEEDED], new_secret())
        for _ in range(6):
            ended_job(domain)
        other = Database(database_url, domain.database._clock)
        with Courier(domain.database, private=True), Courier(other, private=True):
            until(lambda: len(receiver.received) >= 6)
        other.close()
        ids = [headers["webhook-id"] for headers, _ in receiver.received]
        assert len(ids) == len(set(ids)) == 6


def test_a_receiver_that_sends_a_byte_now_and_then_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                try:
                    while not left.wait(0.05):
                        connection.sendall(b"y")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(Undelivered, match="no answer within"):
            send(url, [new_secret()], "evt", 0, b"{}", private=True, seconds=0.5)
        left.set()
        thread.join()


def test_a_webhook_that_turns_private_after_it_was_made_reaches_nothing() -> None:
    """Its name is looked at again where the connection is made."""
    with receiving() as receiver, pytest.raises(Undelivered, match="private network"):
        send(receiver.url, [new_secret()], "evt", 0, b"{}", private=False)
    assert receiver.received == []
