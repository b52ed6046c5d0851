"""Jobs in a real browser: found, followed live from two of them, through a cut, and acted on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.jobs import service
from service.jobs.errors import NotFound
from service.jobs.lifecycle import JOB_ENDED, Priority
from service.jobs.running import attempts, dispatch
from service.jobs.running.attempts import Claim
from service.jobs.submission import NewJob
from tests.browser.conftest import Site, Visit, assert_accessible, assert_fits, photograph
from tests.browser.wire import wire
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, WORKER

EVIL = "<img src=x onerror=alert(1)>"


class Hands:
    """A worker's, on one job, of the owner's."""

    def __init__(self, site: Site, new: NewJob) -> None:
        self.domain = site.domain
        self.job_id = self.domain.submit(new).job.id

    def claim(self) -> Claim:
        """The job's first stage that is ready."""
        ours = {stage.id for stage in self.domain.view(self.job_id).stages}
        (ring, *_) = [ring for ring in dispatch.ready_stages(self.domain.database) if ring.stage_id in ours]
        database = self.domain.database
        assert dispatch.place(database, self.domain.store, ring.stage_id, ring.epoch, WORKER)
        claimed = attempts.claim(database, ring.stage_id, ring.epoch, WORKER)
        assert claimed is not None
        return claimed

    def tell(self, claimed: Claim, message: str, level: Any = "info", **data: Any) -> None:
        kind: Any = "metrics" if "step" in data else "message"
        told = (self.domain.database, claimed.stage_id, claimed.epoch, level, message, data)
        assert attempts.record_message(*told, type=kind)

    def step(self, claimed: Claim, step: int) -> None:
        """One of a training of 60 steps that goes well."""
        loss = 0.7 / (1 + step / 12) + 0.02 * (step * 7 % 5)
        figures = {"loss": loss, "reward_margin": step / 30, "gradient_norm": 1 + 0.2 * (step * 3 % 4)}
        figures |= {"learning_rate": 5e-6 * (1 - step / 61), "tokens_per_second": 1800.0 + 9 * (step % 7)}
        figures |= {"memory_bytes": 2_400_000_000 + 10**7 * (step % 5), "device_use": 0.9 + step % 5 / 100}
        self.tell(claimed, "", step=step, steps=60, **figures)
        attempts.heartbeat(self.domain.database, claimed.stage_id, claimed.epoch, step * 1000, 60_000)

    def finish_until(self, name: str) -> Claim:
        """Finishes stages until this one is the claimed one."""
        while True:
            claimed = self.claim()
            if claimed.name == name:
                return claimed
            self.domain.finish(claimed)


@pytest.fixture
def hands(site: Site) -> Iterator[Any]:
    """Makes hands; what is left of their jobs is cancelled, so that no other test finds it ready."""
    made: list[Hands] = []

    def of(new: NewJob) -> Hands:
        made.append(Hands(site, new))
        return made[-1]

    yield of
    for one in made:
        with suppress(NotFound):  # it was deleted
            if one.domain.view(one.job_id).job.status not in JOB_ENDED:
                service.cancel(one.domain.database, OWNER, one.job_id)


def stage_row(page: Page, name: str) -> Any:
    return page.get_by_role("region", name="Table of the stages").get_by_role("row").filter(has_text=name).first


def test_jobs_are_found_while_one_types_and_the_address_keeps_it(visit: Visit, hands: Any) -> None:
    for suffix in ("needle", EVIL):
        hands(replace(SUPERVISED, suffix="needle", seed=71, metadata={"of": suffix}))
    hands(replace(ALLO, suffix="haystack", seed=72)).claim()
    page = visit("/ui/jobs")
    expect(page.get_by_role("link", name="haystack")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    page.get_by_label("Search").type("needl")
    expect(page.get_by_role("link", name="haystack")).to_have_count(0)
    expect(page.get_by_role("link", name="needle")).to_have_count(2)
    page.get_by_label("Method").select_option("allo")
    expect(page.get_by_text("No jobs that are like this.")).to_be_visible()
    assert "text=needl" in page.url
    assert "method=allo" in page.url
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("needl")
    page.get_by_label("Method").select_option("")
    page.get_by_role("link", name="needle").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("needle")
    page.go_back()
    expect(page.get_by_label("Search")).to_have_value("needl")


def test_a_job_is_followed_live_by_two_browsers_and_acted_on_in_one(visit: Visit, hands: Any) -> None:
    job = hands(replace(ALLO, suffix="arithmetic", seed=73, metadata={"project": "rolls"}))
    claimed = job.finish_until("improve")
    for step in range(1, 41):
        job.step(claimed, step)
    one, other = (visit(f"/ui/jobs/{job.job_id}") for _ in range(2))
    for page in (one, other):
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator(".curve")).to_have_count(7)
        expect(page.get_by_label("Stage", exact=True)).to_have_value("improve")
    assert_accessible(one)
    assert_fits(one)
    photograph(one, "job", "h2:has-text('Stages')")
    for step in range(41, 61):
        job.step(claimed, step)
    job.tell(claimed, f"told {EVIL}", "warn")
    for page in (one, other):
        expect(page.locator(".curve output").first).to_contain_text("at step 60")
        expect(page.locator("#events li").first).to_contain_text(f"told {EVIL}")
        expect(page.locator("#events img")).to_have_count(0)
        expect(stage_row(page, "improve")).to_contain_text("100")
    one.get_by_role("button", name="Pause").focus()
    one.keyboard.press("Enter")
    for page in (one, other):
        expect(page.locator("#live .status").first).to_have_text("paused")
        expect(page.locator("#events li").first).to_contain_text("Pausing the job")
    one.get_by_role("button", name="Resume").click()
    other.on("dialog", lambda dialog: dialog.accept())
    other.get_by_role("button", name="Cancel").click()
    expect(one.locator("#live .status").first).to_have_text("stopping")
    assert attempts.confirm_cancelled(job.domain.database, claimed.stage_id, claimed.epoch)
    for page in (one, other):
        expect(page.locator("#live .status").first).to_have_text("cancelled")
        expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert_accessible(one)
    one.get_by_role("button", name="Retry").click()
    expect(one.locator("#link")).to_have_text("live")
    expect(one.locator("#events li").first).to_contain_text("runs again")


def test_a_stream_that_is_cut_goes_on_and_tells_everything_once(site: Site, visit: Visit, hands: Any) -> None:
    job = hands(replace(SUPERVISED, suffix="cut", seed=74))
    claimed = job.claim()
    with wire(site.address) as line:
        page = visit(f"/ui/jobs/{job.job_id}", base_url=line.address)
        expect(page.locator("#link")).to_have_text("live")
        job.tell(claimed, "before the cut")
        expect(page.locator("#events li").first).to_contain_text("before the cut")
        line.cut()
        expect(page.locator("#link")).to_have_text("connecting again…")
        for number in range(3):
            job.tell(claimed, f"meanwhile {number}")
        job.step(claimed, 1)
        line.mend()
        expect(page.locator("#events li").first).to_contain_text("meanwhile 2")
        expect(page.locator("#link")).to_have_text("live")
        told = page.locator("#events li").all_inner_texts()
        assert sum("meanwhile" in text for text in told) == 3
        assert sum("before the cut" in text for text in told) == 1
        expect(page.locator(".curve output").first).to_contain_text("at step 1")


def test_what_a_job_left_is_taken_away_by_hand(visit: Visit, hands: Any) -> None:
    job = hands(replace(SUPERVISED, suffix="left", seed=75))
    job.domain.finish(job.claim())
    job.domain.finish(job.claim())
    page = visit(f"/ui/jobs/{job.job_id}")
    assert_accessible(page)
    page.get_by_text("Every file that the stages wrote").click()
    with page.expect_download() as taken:
        page.get_by_role("link", name="checkpoint/data.bin").click()
    assert taken.value.path().read_bytes() == b"some content"
    with page.expect_download() as taken:
        page.get_by_role("link", name="safetensors").click()
    assert taken.value.suggested_filename.endswith(".tar")


def test_a_job_waits_behind_others_is_computed_anew_from_a_stage_and_is_deleted(visit: Visit, hands: Any) -> None:
    job = hands(replace(SUPERVISED, suffix="short-lived", seed=77, max_seconds=7200))
    claimed = job.claim()
    job.step(claimed, 1)
    for number in range(70):
        job.tell(claimed, f"line {number}")
    page = visit(f"/ui/jobs/{job.job_id}")
    expect(page.locator("#live")).to_contain_text("of 2 h on workers")
    page.get_by_role("button", name="Earlier events").click()
    expect(page.get_by_text("line 0", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Earlier events")).to_have_count(0)
    for name, ending in (("CSV", ".csv"), ("TensorBoard", "")):
        with page.expect_download() as taken:
            page.get_by_role("link", name=name).click()
        assert taken.value.suggested_filename.endswith(ending)
        assert taken.value.path().stat().st_size > 0
    priority = page.get_by_label("Priority")
    priority.focus()
    priority.dispatch_event("pointerdown")  # as what opens the menu
    priority.evaluate("menu => { menu.dataset.open = 'yes'; }")
    for more in ("one", "two"):  # behind each the page renews itself
        with page.expect_response("**/live?*"):
            job.tell(claimed, more)
    expect(priority).to_have_attribute("data-open", "yes")
    priority.select_option("low")
    expect(page.locator("#events li").first).to_contain_text("priority")
    assert job.domain.view(job.job_id).job.priority == Priority.LOW
    job.domain.finish(claimed)
    expect(stage_row(page, "sft")).to_contain_text("succeeded")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.get_by_label("Computed anew from").select_option("sft")
    page.get_by_role("button", name="Retry").click()
    expect(stage_row(page, "sft")).to_contain_text("ready")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/ui/jobs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    expect(page.get_by_role("link", name="short-lived")).to_have_count(0)


def test_another_owners_job_is_as_absent_as_one_that_never_was(visit: Visit, hands: Any) -> None:
    job = hands(replace(SUPERVISED, seed=76))
    page = visit(f"/ui/jobs/{job.job_id}", "stranger", "read", "submit")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not here")
    assert_accessible(page)
    there = page.content().replace(job.job_id, "ID")
    page.goto("/ui/jobs/ftjob-00000000000000000000000000")
    assert page.content().replace("ftjob-00000000000000000000000000", "ID") == there
    assert json.dumps(there).count("supervised") == 0
