"""Jobs' progress in the terminal: a bar a stage, events above them, curves below."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from service.cli.sparklines import Curves
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
    return watch_jobs(client, [job_id], console)[0]


def watch_jobs(client: Client, job_ids: Sequence[str], console: Console = out) -> list[Json]:
    """Show the jobs until all have ended; the jobs as they then are."""
    with _Screen(console) as screen:
        screen.views = {job_id: _View(screen, job_id if len(job_ids) > 1 else "") for job_id in job_ids}
        after: dict[str, str | None] = dict.fromkeys(job_ids)
        jobs: dict[str, Json] = {}

        def ask() -> Json:
            for job_id in job_ids:
                if job_id not in jobs or jobs[job_id]["status"] not in EXIT_CODES:
                    job = client.job(job_id)
                    told = screen.views[job_id].tell(list(client.events(job_id, after[job_id])))
                    after[job_id], jobs[job_id] = told or after[job_id], job
            return {"status": status_of(list(jobs.values()))}

        def show(_: Json) -> None:
            for job_id, job in jobs.items():
                screen.views[job_id].show(job)

        followed(ask, show)
        return [jobs[job_id] for job_id in job_ids]


def status_of(jobs: Sequence[Json]) -> str:
    """What is to be said of all of them: "running" while one has not ended, then the worst."""
    found = {job["status"] for job in jobs}
    if not found <= EXIT_CODES.keys():
        return "running"
    return next(status for status in ("failed", "cancelled", "succeeded") if status in found)


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


class _Screen(Progress):
    """Each job's bars, and below them the curves of its stage under way, where somebody looks on."""

    def __init__(self, console: Console) -> None:
        self.views: dict[str, _View] = {}
        columns = (TextColumn("{task.description:<14}"), BarColumn(bar_width=30), TaskProgressColumn())
        super().__init__(*columns, TextColumn("{task.fields[note]}"), console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        for view in list(self.views.values()):
            if view.name:
                yield Text(view.name, style="bold")
            yield self.make_tasks_table([task for task in self.tasks if task.id in view.bars.values()])
            if self.console.is_terminal and view.is_running:
                yield _drawn(view.curves.lines(max(8, min(60, self.console.width - 40))))


def _drawn(lines: Sequence[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 1))
    for name, curve, last in lines:
        table.add_row(Text(f"{name:<14}", style="dim"), Text(curve, style="cyan", no_wrap=True), last)
    return table


class _View:
    """A job on the screen: its bars, one a stage, and its curves. It has a `name` where there are several."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name
        self.bars: dict[str, TaskID] = {}
        self.curves, self.is_running = Curves(), False

    def tell(self, events: list[Json]) -> str | None:
        """Print the events that are for people, and take the figures from the others; the id of the last one."""
        for event in events:
            if event["type"] == "metrics":
                self.curves.tell(event["data"])
            elif event["type"] == "message":
                style = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
                clock = " ".join((time.strftime("%H:%M:%S", time.localtime(event["created_at"])), self.name)).rstrip()
                self._progress.console.print(f"[dim]{clock}[/dim] [{style}]{escape(event['message'])}[/{style}]")
        return events[-1]["id"] if events else None

    def show(self, job: Json) -> None:
        running = [stage["name"] for stage in job["stages"] if stage["status"] == "running"]
        self.is_running = self.curves.stage in running
        for stage in job["stages"]:
            if stage["name"] not in self.bars:
                self.bars[stage["name"]] = self._progress.add_task(stage["name"], total=1.0, note="")
            style = _STYLES.get(stage["status"], "dim")
            self._progress.update(
                self.bars[stage["name"]],
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
