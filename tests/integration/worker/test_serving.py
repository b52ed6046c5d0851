"""Models answer: OpenAI's own client, a real web server, a real broker, a real process that serves, a tiny model."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from rich.console import Console

from allo_engine.data.prompts import Encoder
from service.app import create_app
from service.cli import main
from service.cli.chat import Reply, Talk, exchange, printable
from service.client import Client
from service.exchange import AnswerLost, Desk, Exchange, Seat
from service.jobs.access.keys import create_key
from service.settings import Settings
from tests import asking
from tests.apps import on_a_port
from tests.integration.worker.house import OWNER, alive, furnish
from tests.integration.worker.town import ALIGNED, HELLO, Town, asked, opened, served, suspended
from tests.pages import python
from tests.parts import Parts
from tests.waiting import PATIENCE, until
from worker import turns
from worker.serving import read


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, parts: Parts) -> Iterator[Town]:
    with parts() as named, opened(tmp_path_factory.mktemp("town"), named=named) as town:
        yield town


@pytest.fixture
def client(town: Town) -> Iterator[OpenAI]:
    with town.client() as client:
        until(lambda: served(client))
        yield client


def test_a_greedy_answer_is_transformers_own_of_the_base_and_of_what_a_job_made_of_it(
    town: Town, client: OpenAI
) -> None:
    for model in ("tiny", ALIGNED, "tiny"):
        answer = asked(client, model)
        assert answer.choices[0].message.content == town.generated(model, 40)
        assert (answer.model, answer.object) == (model, "chat.completion")
        assert answer.usage.prompt_tokens == len(Encoder.of(town.folders[model]).prompt(HELLO))
        assert answer.usage.completion_tokens == 40
        assert answer.choices[0].finish_reason == "length"
    assert town.generated("tiny", 40) != town.generated(ALIGNED, 40)


def test_a_streamed_answer_is_the_whole_one_in_pieces(town: Town, client: OpenAI) -> None:
    chunks = list(asked(client, ALIGNED, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == town.generated(ALIGNED, 40)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == asked(client, ALIGNED).usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


def test_the_page_of_clients_shows_how_a_model_is_tried(
    town: Town, client: OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    code = python("service/clients.md", "Trying a model").replace("stream=True", "stream=True, seed=1, max_tokens=20")
    exec(code, {"client": client, "job": SimpleNamespace(fine_tuned_model=ALIGNED)})  # noqa: S102 - our own page
    said = [{"role": "user", "content": "What is 6 times 7?"}]
    whole = client.chat.completions.create(model=ALIGNED, messages=said, seed=1, max_tokens=20)  # type: ignore[arg-type]
    assert capsys.readouterr().out == whole.choices[0].message.content


def test_a_text_is_gone_on_with_streamed_and_whole_and_the_same_seed_gives_the_same(client: OpenAI) -> None:
    request: Any = {"model": "tiny", "prompt": "Once", "max_tokens": 20, "n": 3, "seed": 5, "top_p": 0.9}
    whole = client.completions.create(**request)
    texts = ["", "", ""]
    for chunk in client.completions.create(**request, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 3
    assert client.completions.create(**request | {"seed": 6}).choices[0].text != texts[0]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 4


def test_several_models_answer_side_by_side(town: Town, client: OpenAI) -> None:
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda model: asked(client, model, 100), ["tiny", ALIGNED] * 2)
    wanted = [town.generated(model, 100) for model in ("tiny", ALIGNED)]
    assert [answer.choices[0].message.content for answer in answers] == wanted * 2


def test_a_stop_is_no_part_of_the_answer(client: OpenAI) -> None:
    whole = asked(client, "tiny").choices[0].message.content
    stopped = asked(client, "tiny", stop=[whole[6:9]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(whole[6:9])], "stop")


def test_another_owners_model_answers_exactly_as_an_absent_one(town: Town) -> None:
    with town.client("stranger") as stranger:
        told = []
        for model in (ALIGNED, "ft:tiny:first:99999999"):
            with pytest.raises(openai.NotFoundError) as refused:
                asked(stranger, model)
            told.append((str(refused.value.body).replace(model, "…"), refused.value.code))
        assert told[0] == told[1]
        assert told[0][1] == "model_not_found"


def test_the_dashboard_streams_the_same_answer_to_whoever_is_signed_in(town: Town, client: OpenAI) -> None:
    key = create_key(town.house.database, OWNER, ("read",)).secret
    with httpx.Client(base_url=town.url, headers={"origin": town.url}, timeout=PATIENCE) as browser:
        assert browser.post("/ui/login", data={"key": key}).status_code == 303
        token = browser.get("/ui/try").text.partition('"X-Form-Token":"')[2][:64]
        body = {"model": ALIGNED, "messages": HELLO, "max_tokens": 40, "temperature": 0}
        answer = browser.post("/ui/try/answer", json=body, headers={"x-form-token": token})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    told = [json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert ("".join(told), last) == (town.generated(ALIGNED, 40), "[DONE]")


def test_what_has_no_room_in_the_model_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x" * 600, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", []), ("n", 9), ("temperature", 2.5), ("top_p", 0), ("max_tokens", 0), ("messages", []), ("stop", [""])],
)
def test_a_field_that_is_not_taken_is_named(town: Town, field: str, value: Any) -> None:
    with town.client() as client, pytest.raises(openai.UnprocessableEntityError) as refused:
        client.post("/chat/completions", body={"model": "tiny", "messages": HELLO, field: value}, cast_to=object)
    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


@pytest.mark.parametrize("moment", ["while it waits for all", "before the first word", "in the middle"])
def test_one_who_goes_away_is_not_answered_any_further(town: Town, client: OpenAI, moment: str) -> None:
    with town.client() as leaving, suspended(town) as process:
        if moment == "in the middle":
            process.resume()
            next(iter(asked(leaving, "tiny", 490, n=8, stream=True)))
            process.suspend()
        else:
            hurried = leaving.with_options(timeout=httpx.Timeout(PATIENCE, read=0.5))
            with pytest.raises(openai.APITimeoutError):
                asked(hurried, "tiny", 490, stream=moment == "before the first word")
        assert moment != "in the middle" or town.kept() <= 1  # it may have been over already
        leaving.close()
        until(lambda: town.kept() == 0)
    assert asked(client, "tiny", 2).choices


def test_who_asked_which_model_is_in_the_audit_log(town: Town, client: OpenAI) -> None:
    asked(client, ALIGNED, 1)
    with town.client("operator", "admin") as admin:
        asked_for = {"owner": OWNER, "object": ALIGNED}
        page = lambda: admin.get("/audit", options={"params": asked_for}, cast_to=httpx.Response).json()  # noqa: E731
        entry = until(lambda: page()["data"])[0]
    assert (entry["verb"], entry["status"]) == ("chat.create", 200)


def test_an_owner_waits_for_so_many_answers_and_gets_them_back(town: Town, client: OpenAI) -> None:
    with ExitStack() as open_ones:
        for _ in range(town.house.settings.max_owner_answers):
            open_ones.enter_context(town.app.state.context.answering.open(OWNER))
        with pytest.raises(openai.RateLimitError):
            asked(client, "tiny", 1)
        with town.client("another") as another:
            assert asked(another, "tiny", 1).choices
    for _ in range(town.house.settings.max_owner_answers + 1):
        assert asked(client, "tiny", 1).choices


def test_what_is_answered_is_heard_by_whoever_asked_and_by_nobody_once_they_are_gone(town: Town) -> None:
    settings = town.house.settings
    web, desk = Exchange(settings.broker_url, "other"), Desk(settings.broker_url, "other", "worker")

    async def asked() -> None:
        async with web.opened() as caller:
            assert await caller.seats(["worker", "another"]) == {}
            desk.offer(Seat(["base"], 1, 10))
            assert await caller.seats(["worker", "another"]) == {"worker": Seat(["base"], 1, 10)}
            desk.withdraw()
            assert await caller.seats(["worker"]) == {}
            assert desk.taken(0.01) is None
            await caller.ask("worker", "chat-1", {"question": "?"})
            assert desk.taken(1) == {"id": "chat-1", "question": "?"}
            assert await caller.heard(0.01) == []
            assert all(desk.tell("chat-1", {"number": number}) for number in range(3))
            assert await caller.heard(1) == [{"number": number} for number in range(3)]
            assert not desk.tell("chat-2", {})
            await caller.forget()
            assert not desk.tell("chat-1", {})
            with pytest.raises(AnswerLost):
                await caller.heard(0.01)

    asyncio.run(asked())
    desk.close()


GOOD = {"base": "0" * 64, "files": [["model.safetensors", "0" * 64, 8]], "delta": None}


@pytest.mark.parametrize(
    "made_up",
    [
        {},
        {"id": "x", "served": GOOD},
        {"id": "x", "served": {**GOOD, "files": [["../allo.db", "0" * 64, 8]]}, "question": {}},
        {"id": "x", "served": {**GOOD, "files": [["x/y.safetensors", "0" * 64, 8]]}, "question": {}},
        {"id": "x", "served": {**GOOD, "files": [["config.json", "../../allo.db", 8]]}, "question": {}},
        {"id": "x", "served": {**GOOD, "delta": "../.."}, "question": {}},
        {"id": "x", "served": GOOD, "question": {"n": "many"}},
    ],
)
def test_a_made_up_question_is_dropped(made_up: dict[str, Any]) -> None:
    assert read({"id": "x", "served": GOOD, "question": {}}) is not None
    assert read(made_up) is None


def allo(town: Town, *arguments: str) -> list[str]:
    """A command line of the owner's."""
    key = create_key(town.house.database, OWNER, ("read",)).secret
    return ["chat", *arguments, "--url", town.url, "--api-key", key, "--max-tokens", "40", "--temperature", "0"]


def test_the_terminal_asks_several_models_once(town: Town, client: OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(allo(town, "tiny", ALIGNED, "--prompt", "Hello!", "--json")) == 0
    answers = {found["model"]: found["answer"] for found in json.loads(capsys.readouterr().out)}
    assert answers == {model: printable(town.generated(model, 40)) for model in ("tiny", ALIGNED)}
    assert main(allo(town, "nobody", "--prompt", "Hello!")) == 1
    assert "does not exist" in capsys.readouterr().out


def test_in_the_terminal_a_conversation_goes_on_and_an_interrupt_stops_an_answer_alone(
    town: Town, client: OpenAI
) -> None:
    key = create_key(town.house.database, OWNER, ("read",)).secret
    with Client(town.url, key) as terminal:
        talks = [Talk(name, name) for name in ("tiny", ALIGNED)]
        shown = Console(file=io.StringIO(), width=100)
        exchange(terminal, talks, "Hello!", {"max_tokens": 20, "temperature": 0}, shown)
        first = printable(town.generated("tiny", 20))
        assert talks[0].said == [*HELLO, {"role": "assistant", "content": first}]
        assert first.split("\n")[0][:10] in shown.file.getvalue()  # type: ignore[attr-defined]
        long = Reply(talks[0], {"role": "user", "content": "More!"})
        long.stop()
        long.read(terminal, {"max_tokens": 300})
        assert len(talks[0].said) == 2
        exchange(terminal, talks, "And?", {"max_tokens": 5, "temperature": 0}, shown)
        assert [message["content"] for message in talks[0].said][2:3] == ["And?"]


def test_at_a_terminal_an_interrupt_stops_the_answer_and_not_the_program(town: Town, client: OpenAI) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.cli", *allo(town, "tiny", ALIGNED)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=heed_interrupts
    ) as process:
        os.close(theirs)
        try:
            screen = Screen(ours)
            screen.wait_for("> ")
            with suspended(town):  # it would have answered before the key is pressed
                os.write(ours, b"Hello!\n")
                screen.wait_for("…")
                os.killpg(process.pid, signal.SIGINT)
                screen.wait_for("[stopped]")
                screen.wait_for("> ")
            os.write(ours, b"Hello!\n")
            screen.wait_for("> ")
            os.write(ours, b"\x04")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    os.close(ours)


def heed_interrupts() -> None:
    """As at a terminal: what a script starts in the background is born deaf to them, with all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Screen:
    """What a terminal's program wrote since it was last waited for."""

    descriptor: int
    text: str = ""

    def wait_for(self, words: str) -> None:
        while words not in self.text:
            assert select.select([self.descriptor], [], [], PATIENCE)[0], self.text
            self.text += os.read(self.descriptor, 65536).decode(errors="replace")
        self.text = self.text.partition(words)[2]


def test_training_comes_first_and_the_model_is_gone_before_its_stage_begins(town: Town, client: OpenAI) -> None:
    """The last one: the others need the model."""
    asked(client, "tiny", 1)
    process = town.model_process()
    assert process is not None
    stream = asked(client, "tiny", 490, n=8, stream=True)
    next(iter(stream))
    process.suspend()  # it would have answered before a stage comes
    job = town.house.submit()
    town.house.dispatch()
    with turns.training(town.house.settings.data_dir, PATIENCE):
        assert not alive(process.pid)
        with pytest.raises(openai.APIError, match="goes first"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as refused:
            asked(client, "tiny", 1)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
        assert "training" in str(refused.value)
    town.house.cancel(job)


def test_without_a_broker_or_a_worker_there_is_a_clear_answer(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", broker_url=f"redis+socket://{tmp_path}/none", min_free_bytes=0)
    settings.open_data_dir()
    house = furnish(settings, tmp_path)
    headers = {"authorization": f"Bearer {create_key(house.database, OWNER, ('read',)).secret}"}
    with on_a_port(create_app(settings)) as port:
        asked = {"model": "tiny", "prompt": "x"}
        refused = asking.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, headers=headers)
    house.database.close()
    assert refused.status_code == 503
    assert "broker" in refused.json()["error"]["message"]
