"""Models, workers, keys and usage, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Browse, Site, Visit, assert_accessible, assert_fits, site_in
from tests.integration.pages.furnished import furnished, pages
from tests.integration.service.domain import SUPERVISED


@pytest.mark.parametrize("name", ["models", "models/tiny", "workers", "usage"])
def test_each_page_fits_a_phone_and_is_accessible(name: str, site: Site, visit: Visit) -> None:
    site.domain.submit(SUPERVISED)
    site.domain.run_all()
    page = visit(f"/ui/{name}")
    assert_accessible(page)
    assert_fits(page)


def test_a_key_is_made_by_keyboard_copied_and_revoked(visit: Visit) -> None:
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
    row = page.get_by_role("row").filter(has_text="guest")
    page.once("dialog", lambda dialog: dialog.dismiss())
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("valid")
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row").filter(has_text="guest")).to_contain_text("revoked")
    expect(page.locator("#secret")).to_have_count(0)


def test_on_no_page_is_a_name_more_than_text(browse: Browse, tmp_path: Path) -> None:
    with site_in(tmp_path / "data") as site:
        found = list(pages(site.app, *furnished(site.domain, 3)))
        page = browse(site.address, "/ui/jobs", site.token())
        for route, address in found:
            page.goto(address)
            expect(page.locator("h1, h2, h3, article, li, .empty").first).to_be_attached()
            assert page.locator("img, [onerror], script:not([src])").count() == 0, route
