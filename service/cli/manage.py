"""`allo jobs`, `priority`, `cancel`, `pause`, `resume`, `retry`, `delete`, `events`: what is done with jobs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.jobs import PRIORITIES
from service.cli.terminal import listing, out, shown
from service.jobs.lifecycle import JobStatus

_JOBS_EPILOG = """\
examples:
  allo jobs                             the newest 20
  allo jobs --status failed             the newest 20 of these
  allo jobs ftjob-… --json              one of them, with all settings and stages
"""
_EVENTS_EPILOG = """\
examples:
  allo events ftjob-…                   what happened, oldest first
  allo events ftjob-… --follow          and what happens, until the job ends
  allo events ftjob-… --metrics         the training's figures, too
"""
_DELETE_EPILOG = """\
example:
  allo delete ftjob-…

Its models go, with their exports, and its events. What it was given stays, and what other jobs took over from it.
"""
_RETRY_EPILOG = """\
examples:
  allo retry ftjob-…                    finished stages are kept: it begins where it ended
  allo retry ftjob-… --from pair        stage pair and all that read of it are computed anew
  allo retry ftjob-… --max-seconds 7200
"""
_PRIORITY_EPILOG = """\
example:
  allo priority ftjob-… low

What waits of a higher priority goes first; of an equal one, owners take turns, whoever uses least first. `high` takes a
key with scope admin.
"""
_VERBS: dict[str, tuple[str, str]] = {
    "cancel": ("end a job", "The stage that runs stops within seconds; what was finished is kept for `allo retry`."),
    "pause": (
        "let a job rest, and its device do other work",
        "The stage that runs leaves a checkpoint; `allo resume` goes on from it.",
    ),
    "resume": ("go on with a paused job", "It goes on from its checkpoint, to the same bits."),
}


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    jobs = command(commands, "jobs", "list the jobs, newest first", _JOBS_EPILOG, _jobs)
    jobs.add_argument("job", nargs="?", metavar="JOB", help="show this one")
    jobs.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (20)")
    jobs.add_argument("--status", choices=[status.value for status in JobStatus], help="those alone")
    for name, (summary, more) in _VERBS.items():
        verb = command(commands, name, summary, f"example:\n  allo {name} ftjob-…\n\n{more}\n", _verb(name))
        verb.add_argument("job", metavar="JOB", help="ftjob-…")
    retry = command(commands, "retry", "run a failed or cancelled job again", _RETRY_EPILOG, _retry)
    retry.add_argument("job", metavar="JOB", help="ftjob-…")
    retry.add_argument("--from", dest="start", metavar="STAGE", help="compute this stage, and what follows, anew")
    retry.add_argument("--max-seconds", type=int, metavar="N", help="what its stages may run for from now on")
    priority = command(commands, "priority", "have a job go before others or behind", _PRIORITY_EPILOG, _priority)
    priority.add_argument("job", metavar="JOB", help="ftjob-…")
    priority.add_argument("priority", choices=PRIORITIES, metavar="PRIORITY", help=", ".join(PRIORITIES))
    delete = command(
        commands, "delete", "forget jobs that have ended, with all that they left", _DELETE_EPILOG, _delete
    )
    delete.add_argument("jobs", nargs="+", metavar="JOB", help="ftjob-…")
    events = command(commands, "events", "tell what happened in a job", _EVENTS_EPILOG, _events)
    events.add_argument("job", metavar="JOB", help="ftjob-…")
    events.add_argument("--follow", action="store_true", help="stay until the job ends")
    events.add_argument("--metrics", action="store_true", help="with the figures of every step that was told")


def _jobs(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.job:
            found = client.job(args.job)
            shown(args, found, lambda: _job_table([found]))
            if not args.json and (result := found["fine_tuned_model"] or (found["error"] or {}).get("message")):
                out.print(f"\n{result}", markup=False)
            return 0
        listed = client.jobs(args.limit, args.status)
        nothing = f"No job is {args.status}." if args.status else "There are no jobs: `allo submit` starts one."
        shown(args, listed, lambda: _job_table(listed) if listed else nothing)
    return 0


def _verb(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        with connect(args) as client:
            job = client.post(f"/v1/fine_tuning/jobs/{args.job}/{name}")
        stopping = name in ("cancel", "pause") and job["status"] == "running"
        shown(args, job, lambda: f"{job['id']} is {'about to stop' if stopping else job['status']}.")
        return 0

    return run


def _retry(args: argparse.Namespace) -> int:
    asked = {"from": args.start, "max_seconds": args.max_seconds}
    with connect(args) as client:
        job = client.post(
            f"/v1/fine_tuning/jobs/{args.job}/retry", {name: value for name, value in asked.items() if value}
        )
    shown(args, job, lambda: f"{job['id']} is {job['status']}.")
    return 0


def _priority(args: argparse.Namespace) -> int:
    with connect(args) as client:
        job = client.post(f"/v1/fine_tuning/jobs/{args.job}/priority", {"priority": args.priority})
    shown(args, job, lambda: f"{job['id']} has priority {job['priority']}.")
    return 0


def _delete(args: argparse.Namespace) -> int:
    with connect(args) as client:
        for job_id in args.jobs:
            gone = client.delete(f"/v1/fine_tuning/jobs/{job_id}")
            shown(args, gone, lambda job_id=job_id: f"{job_id} is deleted.")  # type: ignore[misc]
    return 0


def _events(args: argparse.Namespace) -> int:
    with connect(args) as client:
        for event in client.live_events(args.job) if args.follow else client.events(args.job):
            if event["type"] == "message" or args.metrics:
                shown(args, event, lambda event=event: event_line(event))  # type: ignore[misc]
    return 0


def event_line(event: dict[str, Any]) -> str:
    """A line of a job's story."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["created_at"]))
    figures = event["data"] if event["type"] == "metrics" else {}
    numbers = " ".join(f"{key}={value:.6g}" for key, value in figures.items() if isinstance(value, int | float))
    return f"{clock}  {event['level']:<5} {event['message']} {numbers}".rstrip()


def _job_table(jobs: list[dict[str, Any]]) -> Table:
    table = listing("job", "status", "made", "model", "method", "stages")
    for job in jobs:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
        done = f"{job['progress']['stages_ended']} of {job['progress']['stages_total']}"
        table.add_row(job["id"], job["status"], made, job["model"], job["method"]["type"], done)
    return table
