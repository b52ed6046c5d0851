"""The page where models are tried, in a real browser, before a worker that answers and one that is not there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, expect

from service.api import render
from service.embedded import broker_url
from service.exchange import Desk, Seat
from service.jobs.registry.served import served
from tests.browser.conftest import Browse, Site, Visit, assert_accessible, assert_fits, photograph, site_in
from tests.integration.service.domain import OWNER, WORKER
from tests.integration.service.taught import taught
from tests.integration.worker.processes import Valkey
from tests.waiting import PATIENCE

EVIL = "<img src=x onerror=alert(1)></p><script>alert(2)</script>"
LONG = "Go on"
QUESTION = "A baker makes 12 trays of 8 rolls and sells 70 of them. How many rolls are left?"
SAID = {
    "base": "A baker makes 12 trays of 8 rolls and sells 70 of them. A baker makes 12 trays of 8 rolls and",
    "sft": "He makes 12 + 8 = 20 rolls. 20 - 70 = 50, so there are 50 rolls left. The answer is 50.",
    "warmup": "12 trays of 8 rolls are 96 rolls. He sells 70 rolls. 96 - 70 = 36. The answer is 36.",
    "forget": "12 trays of 8 rolls are 12 * 8 = 96 rolls. Then 96 rolls are left. The answer is 96.",
    "improve": "12 trays of 8 rolls are 12 * 8 = 96 rolls. He sells 70 of them: 96 - 70 = 26. The answer is 26.",
}
"""What each model of a job answers to the question."""


SEAT = Seat(bases=[], questions=0, room=10**12)


@dataclass
class Answering(threading.Thread):
    """A worker's part of the conversation, without a model: it answers the question as it is told, by base, says
    whatever else it hears again, and goes on without an end where it is asked to."""

    desk: Desk
    said: Mapping[str, str]
    ended: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.ended.is_set():
            self.desk.offer(SEAT)
            asked = self.desk.taken(0.5)
            if asked is not None:
                heard = asked["question"]["messages"][-1]["content"]
                self.desk.tell(asked["id"], {"type": "began", "prompt_tokens": 1})
                if heard == LONG:
                    self.go_on(asked["id"])
                else:
                    self.say(asked["id"], self.said[asked["served"]["base"]] if heard == QUESTION else heard)

    def go_on(self, name: str) -> None:
        while self.desk.tell(name, {"type": "text", "sample": 0, "text": "on and "}) and not self.ended.wait(0.05):
            self.desk.offer(SEAT)
        self.given_up.set()

    def say(self, name: str, text: str) -> None:
        for piece in re.findall(".{1,7}", text):
            self.desk.tell(name, {"type": "text", "sample": 0, "text": piece})
        self.desk.tell(name, {"type": "end", "sample": 0, "reason": "stop", "tokens": 1})
        self.desk.tell(name, {"type": "done"})


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str, Answering]]:
    """A site with a broker, a job of five models, and who answers for them."""
    folder = tmp_path_factory.mktemp("town")
    valkey, url = Valkey(folder / "broker"), broker_url(folder / "broker")
    try:
        with site_in(folder / "data", broker_url=url) as site:
            job, said = furnished(site)
            worker = Answering(Desk(url, site.app.state.context.settings.queue, WORKER), said)
            worker.desk.offer(SEAT)
            worker.start()
            yield site, job, worker
            worker.ended.set()
            worker.join()
            worker.desk.close()
    finally:
        valkey.kill()


def furnished(site: Site) -> tuple[str, dict[str, str]]:
    """A job's id, and what each of its models says to the question, by the base that it is served as."""
    files = {name: {"checkpoint": {"model.safetensors": name, "config.json": "{}"}} for name in SAID}
    job = taught(site.domain, files)
    left = render.checkpoints(site.domain.view(job))
    names = {"base": "tiny", **{row["stage"]: row["fine_tuned_model_checkpoint"] for row in left}}
    domain = site.domain
    return job, {served(domain.database, domain.store, OWNER, name).base: SAID[stage] for stage, name in names.items()}


@pytest.fixture
def page(browse: Browse, town: tuple[Site, str, Answering]) -> Page:
    """The job's models, to be tried."""
    site, job, _ = town
    return browse(site.address, f"/ui/try?job={job}", site.token())


def ask(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


def test_all_models_of_a_job_are_asked_side_by_side(page: Page) -> None:
    ask(page, QUESTION)
    expect(page.locator("#state")).to_have_text("5 of 5 answered.")
    assert page.locator("#talks .said").all_inner_texts() == list(SAID.values())
    assert_accessible(page)
    page.get_by_role("button", name="New conversation").click()
    for number in (3, 4):
        page.get_by_label(f"Model {number}").fill("")
    ask(page, QUESTION)
    expect(page.locator("#state")).to_have_text("3 of 3 answered.")
    photograph(page, "try", "label[for=prompt]", 390)


def test_an_answer_that_is_markup_is_text(page: Page) -> None:
    for number in range(2, 6):
        page.get_by_label(f"Model {number}").fill("")
    ask(page, EVIL)
    expect(page.locator("#state")).to_have_text("1 of 1 answered.")
    expect(page.locator("#talks .said")).to_have_text(EVIL)
    expect(page.locator("#talks").locator("img, script")).to_have_count(0)


def test_stop_ends_the_answer_at_the_worker_too(page: Page, town: tuple[Site, str, Answering]) -> None:
    for number in range(2, 6):
        page.get_by_label(f"Model {number}").fill("")
    ask(page, LONG)
    expect(page.locator("#talks .said")).to_contain_text("on and on and")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#state")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    assert town[2].given_up.wait(PATIENCE), "nobody listens, and it goes on no more"
    ask(page, "Hello")
    expect(page.locator("#talks .said").last).to_have_text("Hello")


def test_models_are_asked_by_keyboard_and_each_column_says_why_nobody_answers(visit: Visit) -> None:
    page = visit("/ui/try?model=tiny&model=<b>none</b>")
    assert_accessible(page)
    page.get_by_label("Prompt").fill("<i>Hello</i>")
    page.keyboard.press("Control+Enter")
    tiny, none = (page.get_by_role("region", name=name) for name in ("tiny", "<b>none</b>"))
    expect(tiny).to_contain_text("The broker does not answer")
    expect(tiny).to_contain_text("<i>Hello</i>")
    expect(none).to_contain_text("does not exist")
    expect(page.locator("#state")).to_have_text("0 of 2 answered.")
    expect(page.get_by_label("Prompt")).to_have_value("<i>Hello</i>")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    assert_accessible(page)
    assert_fits(page)
    page.get_by_role("button", name="New conversation").click()
    expect(tiny).to_have_count(0)
