"""What a job's models gained, as the terminal shows it."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.table import Table

from allo_engine.rounds import title_of
from service.cli.terminal import out
from service.client import Client

Rows = list[dict[str, Any]]


def show_results(client: Client, job: dict[str, Any]) -> None:
    """The job's report, where it has one, and how to get the model."""
    if job["status"] != "succeeded":
        return
    if job["result_files"]:
        show_report(read_report(client, job))
    out.print(f"\nallo download {job['id']} ./aligned")


def read_report(client: Client, job: dict[str, Any]) -> Rows:
    """A line a model, as stage evaluate wrote them."""
    found: Rows = json.loads(client.file_content(job["result_files"][0]))["models"]
    return found


def show_report(rows: Rows) -> None:
    """Problems: answers that were right. Preferences: pairs told apart. Chats: cross-entropy."""
    if "problems" in rows[0]:
        more = _more(rows[0])
        table = Table(
            *("model", "right", "accuracy", "95 % interval", "no answer", *more),
            title="Held-out problems, greedy answers",
        )
        for row in rows:
            right, extra = f"{row['right']} of {row['problems']}", [f"{row[key]:.1%}" for key in more.values()]
            table.add_row(_name(row), right, f"{row['accuracy']:.1%}", _interval(row), str(row["unparsed"]), *extra)
    elif "pairs" in rows[0]:
        table = Table(
            *("model", "pairs", "told apart", "95 % interval", "margin", "calibration error"),
            title="Held-out preferences",
        )
        for row in rows:
            figures = f"{row['margin']:.3f}", f"{row['calibration_error']:.3f}"
            table.add_row(_name(row), str(row["pairs"]), f"{row['accuracy']:.1%}", _interval(row), *figures)
    else:
        table = Table("model", "tokens", "cross-entropy", title="Held-out responses")
        for row in rows:
            table.add_row(_name(row), str(row["tokens"]), f"{row['cross_entropy']:.4f}")
    out.print(table)
    if compared := rows[-1].get("against_warmup"):
        low, high = compared["low"], compared["high"]
        verdict = "which is more than chance" if low > 0 or high < 0 else "which chance alone would explain"
        out.print(
            f"Aligned against vanilla DPO, case by case: {compared['difference']:+.1%} "
            f"(95 % interval {low:+.1%} to {high:+.1%}), {verdict}."
        )
    if "retention" in rows[0]:
        _show_retention(rows)
    if "harness" in rows[0]:
        _show_harness(rows)
    if "win_rate" in rows[-1]:
        _show_judged(rows[-1])


def _show_harness(rows: Rows) -> None:
    """Every figure of every task, a model a column; with its standard error where the harness gave one."""
    table = Table("task", "figure", *(_name(row) for row in rows), title="lm-evaluation-harness")
    for task, metrics in rows[0]["harness"].items():
        for key in (key for key in metrics if not key.endswith("_stderr")):
            found = [row["harness"][task] for row in rows]
            errors = [f" ± {own[f'{key}_stderr']:.3f}" if f"{key}_stderr" in own else "" for own in found]
            table.add_row(task, key, *(f"{own[key]:.3f}{error}" for own, error in zip(found, errors, strict=True)))
    out.print(table)


def _show_judged(row: dict[str, Any]) -> None:
    """What a judge thinks of the last model's answers."""
    rates = [
        f"{row[key]:.1%} (95 % interval {row[f'{key}_low']:.1%} to {row[f'{key}_high']:.1%})"
        for key in ("win_rate", "win_rate_lc")
    ]
    against = title_of(row["judged_against"])
    out.print(
        f"The judge prefers the last model to {against} in {rates[0]} of {row['judged']} answers, both orders read; at "
        f"equal length in {rates[1]}."
    )


def _show_retention(rows: Rows) -> None:
    """What the last model still can of what the base could, on a file about something else."""
    base, last = rows[0]["retention"], rows[-1]["retention"]
    name, write, signed = (
        ("accuracy", "{:.1%}", "{:+.1%}") if "accuracy" in base else ("cross-entropy", "{:.4f}", "{:+.4f}")
    )
    key = name.replace("-", "_")
    told = f"On the retention file: {name} {write.format(base[key])} of the base, {write.format(last[key])} of the last"
    if compared := last.get("against_base"):
        change = [signed.format(compared[end]) for end in ("difference", "low", "high")]
        told += f"; {change[0]} (95 % interval {change[1]} to {change[2]})"
    out.print(f"{told}.")


def _more(row: dict[str, Any]) -> dict[str, str]:
    """The columns of what was asked for beside greedy answers: title to key."""
    ks = sorted(int(found[1]) for key in row if (found := re.fullmatch(r"pass_at_(\d+)", key)))
    options = {"by option": "option_accuracy"} if "option_accuracy" in row else {}
    return {f"pass@{k}": f"pass_at_{k}" for k in ks} | options


def _name(row: dict[str, Any]) -> str:
    return title_of(row["model"])


def _interval(row: dict[str, Any]) -> str:
    return f"{row['accuracy_low']:.1%} – {row['accuracy_high']:.1%}"
