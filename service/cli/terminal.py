"""What every command writes to, and how it says that something is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

for console in (out, err):
    if not console.is_terminal:  # a program or a file reads it, which breaks no lines
        console.width = 200

WIDEST_ID = 34
"""Letters of a sweep's id, than which none is longer."""


class CommandError(Exception):
    """A command that cannot go on; the message says what to do about it."""


def listing(identity: str, *others: str) -> Table:
    """A table for people. What names a row is typed again, so that it is whole on the narrowest terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(identity, no_wrap=True, min_width=WIDEST_ID)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


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


def reported(run: Callable[[], int | None]) -> int:
    """The exit status of a command, which says what went wrong in words where it is something that goes wrong."""
    try:
        return int(run() or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = _told(error)
        if not told:
            raise
    for line in told:
        err.print(f"error: {line}", style="red", markup=False)
    return 1


def _told(error: Exception) -> list[str]:
    """What to say of it; nothing of what nobody foresaw, which its traceback tells best."""
    from pydantic import ValidationError  # here and below: where nothing goes wrong, nobody needs them

    from service.client import ClientError
    from service.jobs.errors import DomainError
    from service.migrating import NoDatabase
    from service.settings import refusals

    if isinstance(error, CommandError | ClientError | DomainError | NoDatabase):
        return [str(error)]
    if isinstance(error, ValidationError):
        return refusals(error)
    if isinstance(error, OSError) and error.filename is not None:  # a file of the user's
        return [f"{error.strerror}: {error.filename}"]
    return []
