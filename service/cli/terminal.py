"""What every command writes to, and how it says that something is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class CommandError(Exception):
    """A command that cannot go on; the message says what to do about it."""


def shown(args: argparse.Namespace, data: Any, words: Callable[[], Table | str]) -> None:
    """Print the data as JSON, one value a line where there are many calls, or in words or a table for people."""
    if args.json:
        print(json.dumps(data), flush=True)  # noqa: T201 - rich would break long lines
        return
    found = words()
    if isinstance(found, Table):
        out.print(found)
    else:
        out.print(found, markup=False)


def duration(seconds: float) -> str:
    """Seconds as a clock shows them: 0:42, 5:17, 3:20:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
