"""What the documentation tells its readers to type, so that tests type it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(page: str, section: str) -> list[str]:
    """The commands of a page's section, in their order: every indented line, with those that it goes on in."""
    prose = re.sub(r"^```.*?^```", "", _section(page, section), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^    (\S(?:.*\\\n)*.*)", prose, re.MULTILINE)


def python(page: str, section: str) -> str:
    """The Python of a page's section: the one block that there is."""
    (code,) = re.findall(r"^```python\n(.*?)^```", _section(page, section), re.DOTALL | re.MULTILINE)
    return str(code)


def _section(page: str, name: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return str(body)
