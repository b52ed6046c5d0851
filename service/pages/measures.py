"""What an evaluation found of a job's models, measure by measure, as bars."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from allo_engine.rounds import title_of
from service.jobs.learned import Report
from service.pages.charts import Bar, bars

MODELS = {
    "base": "Base",
    "sft": "SFT",
    "warmup": "Vanilla DPO (warm-up)",
    "forget": "Forgotten",
    "improve": "Aligned",
}
"""What a report calls the models of a job, and what people do."""

MOST_TASKS = 20
"""Of lm-evaluation-harness that are shown."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measure:
    """One measure of all models that have it; a bar is as long as the page is wide where its value is `most`."""

    title: str
    bars: Sequence[Bar]
    most: float = 1.0

    @property
    def chart(self) -> Markup:
        return bars(self.title, self.bars, self.most)


def measures_of(report: Report) -> list[Measure]:
    """Every measure that a model of the report has."""
    return [measure for measure in _all(report["models"]) if measure.bars]


def with_interval(value: float, low: float | None = None, high: float | None = None) -> str:
    """`62.4 % (58.1 to 66.5)`."""
    interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * value:.1f} %{interval}"


def _all(rows: Rows) -> Iterator[Measure]:
    yield Measure("Accuracy on the validation file", _shares(rows, "accuracy"))
    for k in sorted({int(found[1]) for row in rows for key in row if (found := re.fullmatch(r"pass_at_(\d+)", key))}):
        yield Measure(f"One of {k} samples right (pass@{k})", _shares(rows, f"pass_at_{k}"))
    yield Measure("Most likely option right", _shares(rows, "option_accuracy"))
    yield _losses("Cross-entropy on the validation file, nats a token: less is better", rows)
    kept = [{"model": row["model"], **row["retention"]} for row in rows if "retention" in row]
    yield Measure("Accuracy on the retention file", _shares(kept, "accuracy"))
    yield _losses("Cross-entropy on the retention file, nats a token: less is better", kept)
    tasks = dict.fromkeys(task for row in rows for task in row.get("harness", ()))
    for task in list(tasks)[:MOST_TASKS]:
        yield Measure(f"{task}, accuracy", _of_task(rows, task))


def _shares(rows: Rows, key: str) -> list[Bar]:
    return [_bar(row, row[key], row.get(f"{key}_low"), row.get(f"{key}_high")) for row in rows if key in row]


def _of_task(rows: Rows, task: str) -> list[Bar]:
    """The harness gives a standard error: the interval is 1.96 of them to each side."""
    found = [(row, row["harness"][task]) for row in rows if "acc" in row.get("harness", {}).get(task, ())]
    sides = ((row, figures["acc"], 1.96 * figures.get("acc_stderr", 0.0)) for row, figures in found)
    return [_bar(row, value, value - half, value + half) for row, value, half in sides]


def _losses(title: str, rows: Rows) -> Measure:
    values = [(row, float(row["cross_entropy"])) for row in rows if "cross_entropy" in row]
    found = [Bar(named(row["model"]), value, f"{value:.4g}") for row, value in values]
    return Measure(title, found, max((value for _, value in values), default=0.0))


def _bar(row: Mapping[str, Any], value: float, low: float | None, high: float | None) -> Bar:
    return Bar(named(row["model"]), value, with_interval(value, low, high), low, high)


def named(model: str) -> str:
    """A model of a report as people call it."""
    return title_of(model, MODELS)
