"""Models, workers, keys and usage, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from service.jobs.tables import Model
from service.pages import files, jobs, keys, models
from tests.browser.conftest import Browse, Site, Visit, assert_accessible, assert_fits, site_in
from tests.integration.pages.furnished import furnished, pages
from tests.integration.service.domain import OWNER, SUPERVISED


@pytest.mark.parametrize("name", ["models", "models/tiny", "usage"])
def test_each_page_fits_a_phone_and_is_accessible(name: str, site: Site, visit: Visit) -> None:
    site.domain.submit(SUPERVISED)
    site.domain.run_all()
    page = visit(f"/ui/{name}")
    assert_accessible(page)
    assert_fits(page)


def test_a_worker_that_is_at_work_fits_a_phone(site: Site, visit: Visit) -> None:
    site.domain.run_all()
    site.domain.submit(replace(SUPERVISED, seed=93))
    claimed = site.domain.claim()
    page = visit("/ui/workers")
    expect(page.get_by_role("table")).to_contain_text(claimed.job_id)
    assert_accessible(page)
    assert_fits(page)
    site.domain.finish(claimed)


def test_a_key_is_made_by_keyboard_copied_rotated_and_revoked(visit: Visit) -> None:
    page = visit("/ui/keys", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_text("New key").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Owner").fill("Not Fine")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Owner")).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("1 to 63 of a-z")
    assert_accessible(page)
    page.keyboard.press("Control+a")
    page.keyboard.type("guest")
    page.keyboard.press("Enter")
    secret = page.locator("#secret").inner_text()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    assert_accessible(page)
    assert_fits(page)
    row = page.get_by_role("row").filter(has_text="guest").filter(has_text="valid")
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="A new secret").click()
    expect(page.locator("#secret")).not_to_have_text(secret)
    page.once("dialog", lambda dialog: dialog.dismiss())
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("valid")
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row").filter(has_text="guest")).to_contain_text("revoked")
    expect(page.locator("#secret")).to_have_count(0)


def test_a_model_is_found_taken_away_and_deleted(site: Site, visit: Visit) -> None:
    with site.domain.database.transaction() as session:
        held = session.get_one(Model, "tiny").files
        session.add(Model(id="short-lived", owner=OWNER, created_at=0, files=held))
    page = visit("/ui/models")
    page.get_by_label("Search").type("hort")
    expect(page.get_by_role("link", name="tiny")).to_have_count(0)
    page.get_by_role("link", name="short-lived").click()
    for link in ("model.safetensors", "safetensors, as they are"):
        with page.expect_download() as taken:
            page.get_by_role("link", name=link).click()
        assert b"some content" in taken.value.path().read_bytes()
    for link, asked in (("Try it", "**/ui/try?model=short-lived"), ("New job from it", "**/ui/new?model=short-lived")):
        page.get_by_role("link", name=link).click()
        page.wait_for_url(asked)
        page.go_back()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("short-lived")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/ui/models")
    expect(page.get_by_role("link", name="short-lived")).to_have_count(0)


def test_long_lists_go_on_where_a_page_of_them_ends(site: Site, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    site.domain.submit(replace(SUPERVISED, seed=91))
    site.domain.submit(replace(SUPERVISED, seed=92))
    site.domain.run_all()
    page = visit("/ui/keys")
    for part in (jobs, files, models, keys):
        monkeypatch.setattr(part, "AT_ONCE", 1)
        page.goto(f"/ui{part.router.prefix}")
        there = page.locator("tbody th").last.inner_text()
        page.get_by_role("link", name="Older").click()
        page.wait_for_url("**after=*")
        expect(page.locator("tbody th").first).not_to_have_text(there)
    page.goto("/ui/jobs")
    page.get_by_role("link", name="Older jobs").click()
    page.get_by_role("link", name="Newest jobs").click()
    expect(page.get_by_role("link", name="Newest jobs")).to_have_count(0)


def test_on_no_page_is_a_name_more_than_text(browse: Browse, tmp_path: Path) -> None:
    with site_in(tmp_path / "data") as site:
        found = list(pages(site.app, *furnished(site.domain, 3)))
        page = browse(site.address, "/ui/jobs", site.token())
        for route, address in found:
            page.goto(address)
            expect(page.locator("h1, h2, h3, article, li, .empty").first).to_be_attached()
            assert page.locator("img, [onerror], script:not([src])").count() == 0, route
