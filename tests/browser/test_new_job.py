"""A job made by hand, by keyboard, with the estimate beside it."""

from __future__ import annotations

from playwright.sync_api import expect

from service.jobs import service
from service.jobs.repository import Page
from tests.browser.conftest import Site, Visit, assert_accessible, assert_fits


def test_a_job_is_made_by_hand(site: Site, visit: Visit) -> None:
    page = visit("/ui/new", "maker")
    expect(page.get_by_label("Model", exact=True)).to_contain_text("tiny")
    assert_accessible(page)
    assert_fits(page)
    site.domain.add_file("file-maker", owner="maker")
    page.goto("/ui/new?method=allo")
    page.get_by_label("Training file").select_option("file-maker")
    expect(page.locator('[id="stages.improve.nll"]')).to_have_attribute("placeholder", "1.0")  # published: 0
    page.get_by_label("supervised").check()
    expect(page.locator("summary", has_text="improve")).to_have_count(0)
    page.get_by_label("Training file").select_option("file-maker")
    stage = page.locator("summary", has_text="sft Cross")
    stage.focus()
    page.keyboard.press("Enter")
    rate = page.locator('[id="stages.sft.learning_rate"]')
    rate.fill("-1")
    told = page.locator("#estimate")
    expect(told.get_by_role("link", name="stages.sft.learning_rate")).to_be_visible()
    page.get_by_role("button", name="Submit the job").click()
    expect(rate).to_be_focused()
    assert_accessible(page)
    rate.fill("0.001")
    told.get_by_text("Python", exact=True).click()
    expect(told.locator("#sample-Python")).to_contain_text("'learning_rate': 0.001")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = told.get_by_role("button", name="Copy the Python")  # shown still, though the estimate came anew
    copy.click()
    expect(copy).to_have_text("Copied")
    assert "'learning_rate': 0.001" in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/ui/jobs/ftjob-*")
    ((view,), _) = service.read_page(site.domain.database, "maker", Page(10))
    assert view.job.method["stages"]["sft"]["learning_rate"] == 0.001
