"""The page of promises names, for each, a test that there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "service" / "promises.md").read_text()
PROMISES = PAGE.partition("## What is not promised")[0]
NAMED = re.findall(r"\| `(tests/[\w/]+\.py)::(\w+)` \|$", PROMISES, re.MULTILINE)


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) == len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_of_a_promise_exists(path: str, name: str) -> None:
    assert name in names_in(path)


@cache
def names_in(path: str) -> set[str]:
    found = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.ClassDef)}
