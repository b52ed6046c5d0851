"""`allo webhooks`: servers of one's own that are told when a job ends."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.table import Table

from service.cli.commands import Commands, command, verbs
from service.cli.connection import connect
from service.cli.terminal import listing, shown

_PATH = "/v1/webhook_endpoints"
_EPILOG = """\
examples:
  allo webhooks add https://example.org/hook        prints the signing secret, this once
  allo webhooks test whend-…                        sends a sample now, and says what was answered
  allo webhooks log whend-…                         what was sent, how often, and what is still due
  allo webhooks rotate whend-… --keep-old           another secret; for a day both sign

Deliveries are signed as standardwebhooks.com has it: `client.webhooks.unwrap` of the openai client checks them. One
that is not answered with 2xx is tried again for a day.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    found = verbs(commands, "webhooks", "tell servers of your own when a job ends", _EPILOG)
    make = command(found, "add", "add an endpoint and print its signing secret", "", _add)
    make.add_argument("target", metavar="URL", help="https://…")  # --url is where the service is
    make.add_argument("--name", default="", help="what to call it (its URL)")
    make.add_argument("--event", action="append", metavar="TYPE", help="told of these alone (of every end of a job)")
    command(found, "list", "show the endpoints", "", _list)
    for name, summary, run in (
        ("test", "send a sample event now", _test),
        ("log", "show what was sent and what is due", _log),
        ("rotate", "give the endpoint another signing secret", _rotate),
        ("remove", "forget an endpoint", _remove),
    ):
        verb = command(found, name, summary, "", run)
        verb.add_argument("id", metavar="ENDPOINT", help="whend-…")
        if name == "rotate":
            verb.add_argument("--keep-old", action="store_true", help="for a day the old secret signs, too")


def _add(args: argparse.Namespace) -> int:
    with connect(args) as client:
        types = args.event or client.get("/v1/webhook_event_types")["data"]
        made = client.post(_PATH, {"name": args.name or args.target[:255], "url": args.target, "event_types": types})
    shown(args, made, lambda: f"{made['signing_secret']}\n({made['id']}; the secret is shown this once)")
    return 0


def _list(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.get(_PATH, limit=100)["data"]
    shown(args, found, lambda: _table(found))
    return 0


def _table(endpoints: list[dict[str, Any]]) -> Table | str:
    if not endpoints:
        return "There are no webhooks: `allo webhooks add URL` makes one."
    table = listing("endpoint", "name", "url", "told of")
    for row in endpoints:
        table.add_row(row["id"], row["name"], row["url"], "\n".join(row["event_types"]))
    return table


def _test(args: argparse.Namespace) -> int:
    with connect(args) as client:
        tested = client.post(f"{_PATH}/{args.id}/test", {"event_type": "fine_tuning.job.succeeded"})
    shown(args, tested, lambda: f"It answered {tested['status_code']}.")
    return 0 if 200 <= tested["status_code"] < 300 else 1


def _log(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.get(f"{_PATH}/{args.id}/deliveries", limit=100)["data"]
    shown(args, found, lambda: _log_table(found))
    return 0


def _log_table(deliveries: list[dict[str, Any]]) -> Table:
    table = listing("delivery", "event", "job", "status", "attempts", "last answer", "next attempt")
    for row in deliveries:
        due = row["next_attempt_at"]
        when = "" if due is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(due))
        answer = str(row["status_code"] or row["error"] or "")
        job = row["fine_tuning_job_id"]
        table.add_row(row["id"], row["event_type"], job, row["status"], str(row["attempts"]), answer, when)
    return table


def _rotate(args: argparse.Namespace) -> int:
    body = {"keep_old_secret_active_for_24_hours": args.keep_old}
    with connect(args) as client:
        made = client.post(f"{_PATH}/{args.id}/rotate_secret", body)
    shown(args, made, lambda: f"{made['signing_secret']}\n(it is shown this once)")
    return 0


def _remove(args: argparse.Namespace) -> int:
    with connect(args) as client:
        gone = client.delete(f"{_PATH}/{args.id}")
    shown(args, gone, lambda: f"{args.id} is removed; what was due to it is not sent.")
    return 0
