"""What the README and the pages that the service serves lead to is there."""

from __future__ import annotations

import re

from service.api.docs import pages
from tests.pages import ROOT


def test_the_readmes_links_lead_to_files_and_its_targets_to_make() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^    make ([\w-]+)", text, re.MULTILINE)) | {"demo"} <= set(made)


def test_the_pages_links_lead_to_pages() -> None:
    for name, path in pages().items():
        links = re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
        assert set(links) <= {"settings", *pages()}, name
