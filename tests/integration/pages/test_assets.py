"""The dashboard's own files: what is not ours is what its authors published, and no page names a file elsewhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fastapi.testclient import TestClient

from service.pages.assets import FOLDER, address, assets
from service.pages.rendering import TEMPLATES

VENDOR = FOLDER / "vendor"


def test_what_is_not_ours_is_what_its_authors_published() -> None:
    told = dict(line.split("  ")[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["SHA256SUMS"]
    assert found == told
    assert {"htmx.LICENSE", "uplot.LICENSE"} <= found.keys()


def test_all_scripts_and_styles_are_small() -> None:
    assert sum(len(asset.content) for asset in assets().values()) < 150_000


def test_files_are_served_for_good_under_their_contents_address(browser: TestClient) -> None:
    for name in assets():
        answer = browser.get(address(name))
        assert (answer.status_code, answer.content) == (200, assets()[name].content)
        assert "immutable" in answer.headers["cache-control"]
    assert browser.get("/ui/static/../app.py").status_code == 404
    assert browser.get("/ui/static/%2e%2e/app.py").status_code == 404


def test_templates_hold_no_script_no_style_and_no_address_elsewhere() -> None:
    for path in TEMPLATES.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|\bhx-on|javascript:", text), path
        assert not re.search(r'(?:src|href|action)="?(?:https?:)?//', text), path
        assert "| safe" not in text, path
        assert "autoescape" not in text, path


def test_a_wheel_has_the_templates_and_files() -> None:
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"pages/templates/**/*.html", "pages/static/**/*"' in pyproject
