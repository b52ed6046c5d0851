"""A job's progress in the terminal: a bar a stage, and its events above them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from service.cli.terminal import duration, out
from service.client import Client, ClientError

EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3}
"""A command's exit status, by the job's; 2 is a wrong command line."""

Json = dict[str, Any]

_EVERY_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "bold"}


def watch_job(client: Client, job_id: str, console: Console = out) -> Json:
    """Show the job until it ends; the job as it then is."""
    columns = (TextColumn("{task.description:<14}"), BarColumn(bar_width=30), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        view = _View(progress)
        after: str | None = None

        def ask() -> Json:
            nonlocal after
            job = client.job(job_id)
            after = view.tell(list(client.events(job_id, after))) or after
            return job

        return followed(ask, view.show)


def followed(ask: Callable[[], Json], show: Callable[[Json], None]) -> Json:
    """Shows what is asked for, each second until it has ended; what it then is. Once it has answered, a service that
    restarts meanwhile is waited for."""
    answered: float | None = None
    while True:
        try:
            found = ask()
        except ClientError:
            if answered is None or time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
        else:
            answered = time.monotonic()
            show(found)
            if found["status"] in EXIT_CODES:
                return found
        time.sleep(_EVERY_SECONDS)


class _View:
    """The bars on the screen, one a stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def tell(self, events: list[Json]) -> str | None:
        """Print the events that are for people; the id of the last one."""
        for event in events:
            if event["type"] == "message":
                style = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
                clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
                self._progress.console.print(f"[dim]{clock}[/dim] [{style}]{escape(event['message'])}[/{style}]")
        return events[-1]["id"] if events else None

    def show(self, job: Json) -> None:
        for stage in job["stages"]:
            if stage["name"] not in self._bars:
                self._bars[stage["name"]] = self._progress.add_task(stage["name"], total=1.0, note="")
            style = _STYLES.get(stage["status"], "dim")
            self._progress.update(
                self._bars[stage["name"]],
                completed=stage["progress"]["fraction"],
                description=f"[{style}]{stage['name']}[/{style}]",
                note=_note(stage),
            )


def _note(stage: Json) -> str:
    """What is worth knowing of a stage beside its bar."""
    if stage["status"] == "succeeded":
        return "reused" if stage["reused_from"] else duration(stage["finished_at"] - stage["started_at"])
    if stage["status"] != "running":
        return str(stage["missing"] or stage["status"])
    parts = [f"about {duration(stage['eta_seconds'])} left"] if stage["eta_seconds"] is not None else []
    loss = stage["metrics"].get("loss")
    parts += [f"loss {loss:.4g}"] if isinstance(loss, int | float) else []
    parts += [f"attempt {stage['attempt']}"] if stage["attempt"] > 1 else []
    return ", ".join(parts) or "starting"
