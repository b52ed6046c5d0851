"""What a model says is for people to read."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from service.cli.chat import Reply, Talk, _side_by_side, printable


def test_a_model_says_nothing_to_the_terminal_itself() -> None:
    assert printable("a\x1b[2J\x07\r\x9b31mb\n\tc é漢🙂") == "a�[2J���31mb\n\tc é漢🙂"


@pytest.mark.parametrize(("width", "lines"), [(120, 3), (60, 6)])
def test_answers_stand_side_by_side_where_there_is_room_and_are_never_markup(width: int, lines: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    replies = [Reply(Talk(f"[b]{name}", name), {}, "[red]an answer") for name in ("one", "two")]
    console.print(_side_by_side(replies, width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("[red]an answer") == 2
    assert "[b]one" in shown
    assert len(shown.splitlines()) == lines
