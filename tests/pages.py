"""What the documentation tells its readers to type, so that tests type it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(page: str, section: str) -> list[str]:
    """The commands of a page's section, in their order: every indented line, with those that it goes on in."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^    (\S(?:.*\\\n)*.*)", prose, re.MULTILINE)
