"""One job's page: what it shows, what is done with it, and that nothing in it is read as markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs import service
from service.jobs.data.retention import Policy, Retention
from service.jobs.running import attempts
from service.jobs.tables import Event, Model
from tests.integration.pages.conftest import SignIn, send
from tests.integration.pages.furnished import EVIL
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain, stage_by_name

HTMX = {"hx-request": "true", "sec-fetch-site": "same-origin"}


class Tags(HTMLParser):
    """The tags and attributes that a browser would find."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def address(job_id: str) -> str:
    return f"/ui/jobs/{job_id}"


def tell(served: Domain, claimed: attempts.Claim, step: int, **figures: float) -> None:
    data = {"step": step, "steps": 100, **figures}
    told = (served.database, claimed.stage_id, claimed.epoch, "info", f"Step {step}.", data)
    assert attempts.record_message(*told, type="metrics")


@pytest.fixture
def job_id(served: Domain) -> str:
    return served.submit(SUPERVISED).job.id


def test_a_job_is_shown_from_its_first_moment_to_its_end(browser: TestClient, served: Domain) -> None:
    job_id = served.submit(replace(SUPERVISED, suffix="sums", metadata={"project": "arithmetic"})).job.id
    first = browser.get(address(job_id)).text
    assert all(word in first for word in ("sums", "queued", "arithmetic", "file-train", "has not begun", "waiting"))
    served.run_all()
    last = browser.get(address(job_id)).text
    assert "100\N{NARROW NO-BREAK SPACE}%, 2 of 2 stages" in last
    assert "run 1, succeeded" in last
    model = service.read(served.database, OWNER, job_id).job.fine_tuned_model
    assert f"/ui/models/{model}".replace(":", "%3A") in last
    assert len(last.encode()) < 200_000


def test_a_long_jobs_page_stays_small(browser: TestClient, served: Domain) -> None:
    job_id = served.submit(ALLO).job.id
    served.run_all()
    claimed = served.submit(replace(ALLO, seed=5)).job.id
    assert claimed != job_id
    with served.database.transaction() as session:
        for seq in range(1000, 4000):
            row = Event(id=f"ftevent-{seq}", job_id=job_id, seq=seq, created_at=seq, level="info", type="message")
            row.message, row.data = "word " * 40, {}
            session.add(row)
    page = browser.get(address(job_id))
    assert len(page.content) < 200_000
    assert page.text.count("word word") > 10
    assert page.text.count("<title>run 1, succeeded") == len(served.view(job_id).stages)


def test_attempts_waits_and_what_they_ended_of_are_told(browser: TestClient, served: Domain) -> None:
    job_id = served.submit(SUPERVISED).job.id
    claimed = served.claim()
    assert attempts.fail(served.database, claimed.stage_id, claimed.epoch, "worker_lost", "No sign of life.", True)
    claimed = served.claim()
    assert attempts.release(served.database, claimed.stage_id, claimed.epoch)
    served.claim()
    page = browser.get(address(job_id)).text
    assert re.search(r"run 1, worker lost, [^\"]*; run 2, given back, [^\"]*; run 3, running", page)
    assert page.count('class="bad"') == page.count('class="rest"') == page.count('class="now"') == 1


def test_a_stage_that_was_reused_says_so(browser: TestClient, served: Domain) -> None:
    served.submit(SUPERVISED)
    served.run_all()
    page = browser.get(address(served.submit(SUPERVISED).job.id)).text
    assert page.count("reused: nothing of it has changed") >= 2


def test_what_was_let_go_is_said_where_it_stood(browser: TestClient, served: Domain) -> None:
    job_id = served.submit(ALLO).job.id
    served.run_all()
    assert "let go" not in browser.get(address(job_id)).text
    done = Retention(served.database, Policy(bytes=1), 0).look()
    assert done.stages > 0
    assert browser.get(address(job_id)).text.count(" let go on ") == done.stages


def test_a_job_that_failed_says_why(browser: TestClient, served: Domain, job_id: str) -> None:
    served.fail_thrice()
    page = browser.get(address(job_id)).text
    assert re.search(r'role="alert">It crashed.<', page)
    assert page.count('<rect class="bad"') == 3


def test_settings_that_differ_from_the_defaults_are_marked(browser: TestClient, served: Domain) -> None:
    new = replace(SUPERVISED, stages={"sft": {"learning_rate": 0.125}}, seed=7)
    page = browser.get(address(served.submit(new).job.id)).text
    (row,) = re.findall(r"<tr><th scope=\"row\"><code>learning_rate</code>.*", page)
    assert re.sub(r"<[^>]*>", " ", row).split() == ["learning_rate", "0.125", "2e-05"]
    assert "sft: 1 of" in page
    assert page.count('class="changed"') == 1, "the seed is the job's"


def test_curves_are_thinned_out_to_their_last_point(browser: TestClient, served: Domain, job_id: str) -> None:
    claimed = served.claim()
    for step in (1, 2, 3, 2, 3):
        tell(served, claimed, step, loss=1 / step)
    tell(served, claimed, 4, loss=0.2, reward_margin=1.5)
    with served.database.transaction() as session:
        for seq in range(5, 2005):
            row = Event(id=f"ftevent-{seq}", job_id=job_id, seq=seq + 100, created_at=0, level="info", type="metrics")
            row.message, row.data = "", {"stage": "sft", "step": seq, "loss": 0.1}
            session.add(row)
    found = browser.get(f"{address(job_id)}/curves").json()
    steps, figures = found["sft"]["steps"], found["sft"]["figures"]
    assert (len(steps), steps[0], steps[-1], len(set(steps))) == (500, 1, 2004, 500)
    assert len(figures["loss"]) == len(figures.get("reward_margin", figures["loss"])) == 500
    csv = browser.get(f"{address(job_id)}/metrics")
    assert (csv.status_code, csv.text.count("\n")) == (200, 2005)
    assert browser.get(f"{address(job_id)}/metrics?format=tensorboard").status_code == 200


def test_a_figure_that_a_step_lacks_is_null_there(browser: TestClient, served: Domain, job_id: str) -> None:
    claimed = served.claim()
    tell(served, claimed, 1, loss=1)
    tell(served, claimed, 2, loss=0.5, reward_margin=1.5)
    found = browser.get(f"{address(job_id)}/curves").json()
    assert found == {"sft": {"steps": [1, 2], "figures": {"loss": [1, 0.5], "reward_margin": [None, 1.5]}}}


def test_earlier_events_are_asked_for(browser: TestClient, served: Domain, job_id: str) -> None:
    claimed = served.claim()
    for number in range(70):
        message = (served.database, claimed.stage_id, claimed.epoch, "info", f"number {number}.")
        assert attempts.record_message(*message)
    page = browser.get(address(job_id)).text
    assert "number 69." in page
    assert "number 9." not in page
    (more,) = re.findall(r'hx-get="([^"]*/events\?before=\d+)"', page)
    earlier = browser.get(more, headers=HTMX).text
    assert "number 9." in earlier
    assert "number 10." not in earlier
    assert "before=" not in earlier


@pytest.mark.parametrize("with_script", [True, False])
def test_a_job_is_paused_resumed_cancelled_retried_and_deleted(
    browser: TestClient, served: Domain, job_id: str, with_script: bool
) -> None:
    def do(verb: str) -> Any:
        path = f"{address(job_id)}/{verb}"
        if not with_script:
            return send(browser, path)
        (token,) = set(re.findall(r"X-Form-Token\D*([0-9a-f]{64})", browser.get(address(job_id)).text))
        return browser.post(path, headers={**HTMX, "x-form-token": token})

    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        answer = do(verb)
        assert answer.status_code == (200 if with_script else 303), answer.text
        assert served.view(job_id).job.status == status
        assert not with_script or f'class="status {status}"' in answer.text
    assert do("delete").status_code == 409, "it may go on"
    do("cancel")
    gone = do("delete")
    assert gone.headers["hx-redirect" if with_script else "location"] == "/ui/jobs"
    assert browser.get(address(job_id)).status_code == 404


def test_a_jobs_priority_is_changed_where_it_is_told(sign_in: SignIn, served: Domain, job_id: str) -> None:
    def options(client: TestClient) -> list[str]:
        return re.findall(r"<option(?: selected)?>(\w+)</option>", client.get(address(job_id)).text)

    member = sign_in(OWNER, "read", "submit")
    assert options(sign_in()) == ["low", "normal", "high"]
    assert options(member) == ["low", "normal"]
    assert send(member, f"{address(job_id)}/priority", priority="low").status_code == 303
    assert served.view(job_id).job.priority == -1
    assert send(member, f"{address(job_id)}/priority", priority="high").status_code == 403
    assert send(member, f"{address(job_id)}/priority", priority="urgent").status_code == 422


def test_only_what_can_be_done_is_offered(sign_in: SignIn, served: Domain, job_id: str) -> None:
    def offered(client: TestClient) -> set[str]:
        return set(re.findall(r'id="do-(\w+)"', client.get(address(job_id)).text))

    owner = sign_in()
    assert offered(owner) == {"pause", "cancel"}
    assert offered(sign_in(OWNER, "read")) == set()
    service.pause(served.database, OWNER, job_id)
    assert offered(owner) == {"resume", "cancel"}
    claimed = service.cancel(served.database, OWNER, job_id)
    assert claimed.job.status == "cancelled"
    assert offered(owner) == {"retry", "delete"}


def test_what_the_stages_left_is_sent_when_there_is_more_of_it(
    browser: TestClient, served: Domain, job_id: str
) -> None:
    (live,) = re.findall(r'hx-get="([^"]*/live[^"]*)"', browser.get(address(job_id)).text)
    assert 'id="left"' not in browser.get(live, headers=HTMX).text
    served.finish(served.claim())
    news = browser.get(live, headers=HTMX).text
    assert 'id="left"' in news
    assert "checkpoint/data.bin" in news
    (live,) = re.findall(r'hx-get="([^"]*/live[^"]*)"', news)
    assert 'id="left"' not in browser.get(live, headers=HTMX).text


def test_a_reader_changes_nothing(sign_in: SignIn, served: Domain, job_id: str) -> None:
    reader = sign_in(OWNER, "read")
    for verb in ("cancel", "pause", "resume", "retry", "delete"):
        assert send(reader, f"{address(job_id)}/{verb}").status_code == 403
    assert served.view(job_id).job.status == "queued"


def test_anothers_job_answers_as_an_absent_one(sign_in: SignIn, served: Domain, job_id: str) -> None:
    served.run_all()
    artifact = next(iter(served.view(job_id).artifacts or ())).id
    absent = "ftjob-" + "0" * 26
    for stranger in (sign_in("stranger", "read", "submit"), sign_in("stranger", "admin")):
        for tail in ("", "/live", "/curves", "/stream", "/metrics", "/events?before=9"):
            theirs, none = (stranger.get(f"{address(name)}{tail}") for name in (job_id, absent))
            assert theirs.status_code == none.status_code == 404, tail
            assert theirs.text.replace(job_id, absent) == none.text
        assert stranger.get(f"{address(job_id)}/artifacts/{artifact}").status_code == 404
        for verb in ("cancel", "pause", "resume", "retry", "delete"):
            assert send(stranger, f"{address(job_id)}/{verb}").status_code == 404


def test_files_of_the_stages_are_taken_away_with_the_cookie(browser: TestClient, served: Domain, job_id: str) -> None:
    served.run_all()
    links = re.findall(rf'href="({address(job_id)}/artifacts/[^"]+)" download', browser.get(address(job_id)).text)
    assert len(links) == 2
    for link in links:
        assert browser.get(link).content == b"some content"
        assert browser.get(link).headers["content-disposition"].startswith("attachment")


def test_the_stream_goes_on_behind_what_the_page_has_and_stops_with_the_job(
    browser: TestClient, served: Domain, job_id: str
) -> None:
    service.cancel(served.database, OWNER, job_id)
    events = served.events(job_id)
    (last,) = re.findall(r'data-last="([^"]+)"', browser.get(address(job_id)).text)
    assert last == events[-1].id
    assert browser.get(f"{address(job_id)}/stream?after={last}").status_code == 204
    again = browser.get(f"{address(job_id)}/stream", headers={"last-event-id": last})
    assert again.status_code == 204, "a browser that was cut off says so itself"


def test_whatever_people_name_things_is_text(app: FastAPI, browser: TestClient, served: Domain) -> None:
    served.add_file("file-evil", filename=EVIL)
    with served.database.transaction() as session:
        model = session.get_one(Model, "tiny")
        session.add(Model(id=f"evil {EVIL}", owner=OWNER, created_at=0, files=model.files))
    new = replace(SUPERVISED, model=f"evil {EVIL}", training_file="file-evil", metadata={EVIL: EVIL})
    job_id = served.submit(new).job.id
    claimed = served.claim()
    told = (served.database, claimed.stage_id, claimed.epoch, "warn", f"told {EVIL}", {"note": EVIL})
    assert attempts.record_message(*told)
    attempts.fail(served.database, claimed.stage_id, claimed.epoch, EVIL, f"failed {EVIL}", False)
    plain = Tags(browser.get(address(served.submit(SUPERVISED).job.id)).text)
    for path in (address(job_id), f"{address(job_id)}/live", "/ui/jobs", f"/ui/jobs?text={EVIL}&model={EVIL}"):
        page = browser.get(path).text
        assert "alert(1)" in page or path.endswith("/live"), path
        assert "<script>alert" not in page
        tags = Tags(page)
        assert "onerror" not in tags.attributes
        assert set(tags.tags) <= {*plain.tags, *BESIDE}, path
    assert stage_by_name(served, job_id, "sft").error["code"] == EVIL


BESIDE = {"input", "select", "option", "label", "noscript", "nav", "form", "button", "time", "progress"}
