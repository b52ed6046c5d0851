"""The page where models are tried, in a real browser; no broker is there to ask through."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Visit, assert_accessible, assert_fits


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
