"""Signing in and out, by hand and by keyboard alone."""

from __future__ import annotations

import hashlib

from playwright.sync_api import expect

from service.jobs.access.keys import create_key
from tests.browser.conftest import AXE, Site, Visit, assert_accessible, assert_fits


def test_somebody_signs_in_sees_the_jobs_and_signs_out_by_keyboard_alone(site: Site, visit: Visit) -> None:
    page = visit("/", None)
    expect(page).to_have_title("Sign in · ALLO")
    assert_accessible(page)
    assert_fits(page)
    page.keyboard.type("allo-wrong")  # the field has the focus
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This key is not valid: it is unknown, revoked or expired.")
    assert_accessible(page)
    page.get_by_label("API key").fill(create_key(site.domain.database, "owner").secret)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_title("Sign in · ALLO")
    page.goto("/ui/jobs")
    expect(page).to_have_title("Sign in · ALLO")


def test_axe_is_what_its_authors_published() -> None:
    for line in (AXE / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((AXE / name).read_bytes()).hexdigest() == digest
