"""What the README and the pages that the service serves lead to is there."""

from __future__ import annotations

import re
import shlex
import tomllib

from service.api.docs import pages
from service.cli import parser
from tests.pages import ROOT, commands


def test_the_readmes_links_lead_to_files_and_its_targets_to_make() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^    make ([\w-]+)", text, re.MULTILINE)) | {"demo"} <= set(made)


def test_every_row_stands_in_a_table_with_a_head() -> None:
    for path in (ROOT / "README.md", *pages().values()):
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            if block.startswith("|"):
                assert re.fullmatch(r"\|[-| ]+\|", block.splitlines()[1]), (path.name, block[:80])


def test_the_pages_links_lead_to_pages() -> None:
    for name, path in pages().items():
        links = re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
        assert set(links) <= {"settings", *pages()}, name


def test_whoever_grows_step_by_step_types_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    typed = [shlex.split(line) for line in commands("service/growing.md", "Step by step")]
    installs = [line[3:] for line in typed if line[:2] == [".venv/bin/pip", "install"]]
    assert [extra for _, extra in installs] == [".", ".[scale]", ".[scale-cpu]"]
    for lock, extra in installs:
        assert (ROOT / lock).is_file()
        assert extra in {".", *(f".[{name}]" for name in extras)}
    asked = [line[1:] for line in typed if line[0] == ".venv/bin/allo"]
    assert {line[0] for line in asked} == {"doctor", "keys", "models", "api", "workers", "submit"}
    for line in asked:
        parser().parse_args(line)
