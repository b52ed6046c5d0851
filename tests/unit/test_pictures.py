"""The pictures that the README shows: of the dashboard, by the tests that drive it in a browser (`make pictures`)."""

from __future__ import annotations

import re

from tests.pages import ROOT

FOLDER = ROOT / "tests" / "browser" / "pictures"


def test_every_picture_that_the_readme_names_is_there_and_made_by_a_test() -> None:
    named = set(re.findall(r"\]\(tests/browser/pictures/([\w.-]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "browser").glob("test_*.py"))
    made = {f"{name}.png" for name in re.findall(r'photograph\(\w+, "([\w-]+)"', tests)}
    there = {path.name for path in FOLDER.iterdir()}
    assert named <= there == made


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert max(sizes.values()) <= 120_000, sizes
    assert sum(sizes.values()) < 500_000, sizes
