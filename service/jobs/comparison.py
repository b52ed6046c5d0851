"""Two models, or two methods of several runs each, held against one another case by case: what their jobs' reports have
in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.db import Database
from service.jobs import repository
from service.jobs.errors import Conflict, InvalidRequest, NotFound
from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Artifact
from service.storage.store import Store, lines_of

MOST_RUNS = 32
"""Runs a side."""

LARGEST_REPORTS = 2**28
"""Bytes of reports that are read into memory, in all: the outcomes of millions of cases."""

DRAWN = 10_000_000
"""Cases that the bootstrap draws in all; at most 10,000 draws, at least 1,000."""

SHOWN = 100
"""Changed answers that are listed."""

Row = Mapping[str, Any]
"""A model's line of a report (see the engine's stages/evaluate.py)."""


@dataclass(frozen=True)
class Run:
    """One model of one job: its line, and the cases that its lists are of."""

    job_id: str
    seed: int
    cases: Sequence[str]
    row: Row
    texts: Artifact | None

    @property
    def name(self) -> str:
        return f"{self.job_id}:{self.row['model']}"

    def outcomes(self, key: str) -> dict[str, Any]:
        """A list of the line, by the case's name."""
        return dict(zip(self.cases, self.row[key], strict=True))


def compare(database: Database, store: Store, owner: str, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """Ours minus theirs, run by run and case by case, on the cases that all reports share.

    A run is a job's id, or JOB:MODEL with the model's name in its report (base, sft, warmup, forget, improve); without
    one it is the job's last. Runs are paired by their jobs' seeds where both sides have the same, else in the order
    given. Raises NotFound or InvalidRequest naming the parameter, Conflict where a job has no report to compare, or
    where the held-out cases of all have nothing in common.
    """
    if len(ours) != len(theirs):
        message = f"Give as many runs of theirs as of ours ({len(ours)}); there are {len(theirs)}."
        raise InvalidRequest(message, "theirs", "unpaired_runs")
    sides = [
        [_run(database, store, owner, name, param, LARGEST_REPORTS // (2 * len(ours))) for name in names]
        for param, names in (("ours", ours), ("theirs", theirs))
    ]
    pairs = _paired(*sides)
    runs = [run for pair in pairs for run in pair]
    everywhere = set(runs[0].cases).intersection(*(run.cases for run in runs))
    shared = [case for case in runs[0].cases if case in everywhere]
    if not shared:
        raise Conflict("The runs were evaluated on nothing in common: give jobs of the same validation file.")
    return {
        "object": "fine_tuning.comparison",
        "pairs": [{"ours": our.name, "theirs": their.name, "seeds": [our.seed, their.seed]} for our, their in pairs],
        "cases": len(shared),
        "left_out": len(set().union(*(run.cases for run in runs))) - len(shared),
        "measures": [measure for measure in _measures(pairs, shared) if measure],
        "changed": _changed(store, pairs, shared) if "cases" in runs[0].row else None,
    }


# ---- reading


def _run(database: Database, store: Store, owner: str, name: str, param: str, most: int) -> Run:
    job_id, _, model = name.partition(":")
    with database.snapshot() as session:
        job = repository.job(session, owner, job_id)
        if job is None:
            raise NotFound(f"No fine-tuning job {job_id!r}.", param)
        stages = [stage for stage in repository.stages(session, [job.id]) if stage.name == "evaluate"]
        written = [
            row for row in repository.artifacts(session, [stage.id for stage in stages]) if row.output == "report"
        ]
        files = {row.path: row for row in written}
    if not stages:
        raise Conflict(f"Job {job_id} evaluates nothing: submit it with a validation_file.", param)
    if stages[0].status is not StageStatus.SUCCEEDED or "report.json" not in files:
        raise Conflict(f"Job {job_id} has no report yet: its evaluation is {stages[0].status.value}.", param)
    if files["report.json"].bytes > most:
        size = files["report.json"].bytes
        raise Conflict(f"The report of job {job_id} has {size} bytes; of so many runs each may have {most}.", param)
    report = _read(store, files["report.json"], job_id, param)
    names = [row["model"] for row in report["models"]]
    if model and model not in names:
        raise NotFound(f"The report of job {job_id} has no model {model!r}; it has {', '.join(names)}.", param)
    row = report["models"][names.index(model) if model else -1]
    return Run(job.id, job.seed, report["cases"], row, files.get("texts.jsonl"))


def _read(store: Store, file: Artifact, job_id: str, param: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(b"".join(store.open(file.sha256)))
    if "cases" not in report:
        raise Conflict(f"The report of job {job_id} is of an earlier version and names no cases: run it anew.", param)
    return report


def _paired(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = [{run.seed: run for run in side} for side in (ours, theirs)]
    if len(by_seed[0]) == len(ours) and by_seed[0].keys() == by_seed[1].keys():
        return [(run, by_seed[1][run.seed]) for run in ours]
    return list(zip(ours, theirs, strict=True))


# ---- figures


def _measures(pairs: Sequence[tuple[Run, Run]], shared: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each measure that all of the lines have."""
    rows = [run.row for pair in pairs for run in pair]
    keys = set(rows[0]).intersection(*rows)
    if "cases" in keys:
        yield _measure("accuracy", "higher", _values(pairs, shared, "cases"))
    for k in sorted(int(found[1]) for key in keys if (found := re.fullmatch(r"pass_at_(\d+)", key))):
        yield _measure(f"pass@{k}", "higher", _passing(pairs, shared, k))
    if "option_cases" in keys:
        yield _measure("option_accuracy", "higher", _values(pairs, shared, "option_cases"))
    if "losses" in keys:
        yield _measure("cross_entropy", "lower", _values(pairs, shared, "losses"))


Sides = tuple[list[list[float]], list[list[float]]]
"""Ours and theirs: a list a run, a value a case."""


def _values(pairs: Sequence[tuple[Run, Run]], shared: Sequence[str], key: str) -> Sides:
    """Without the cases that have no such value in one of the runs."""
    found = [[run.outcomes(key) for run in side] for side in zip(*pairs, strict=True)]
    whole = [case for case in shared if all(values[case] is not None for side in found for values in side)]
    ours, theirs = ([[float(values[case]) for case in whole] for values in side] for side in found)
    return ours, theirs


def _passing(pairs: Sequence[tuple[Run, Run]], shared: Sequence[str], k: int) -> Sides:
    from allo_engine.data.statistics import pass_at_k

    ours, theirs = (
        [[pass_at_k(run.row["samples"], run.outcomes("sampled_right")[case], k) for case in shared] for run in side]
        for side in zip(*pairs, strict=True)
    )
    return ours, theirs


def _measure(name: str, better: str, sides: Sides) -> dict[str, Any]:
    # here: numpy, which nothing else of the service needs
    from allo_engine.data.statistics import bootstrap_difference

    ours, theirs = sides
    cases = len(ours[0])
    if not cases:
        return {}
    draws = min(10_000, max(1_000, DRAWN // cases))
    means = [sum(map(sum, side)) / (cases * len(side)) for side in sides]
    compared = bootstrap_difference(ours, theirs, draws=draws)
    return {"measure": name, "better": better, "cases": cases, "ours": means[0], "theirs": means[1], **compared}


# ---- answers that changed


def _changed(store: Store, pairs: Sequence[tuple[Run, Run]], shared: Sequence[str]) -> dict[str, Any]:
    """How often ours is right where theirs is not, and the other way round; and the cases of which that is so, those of
    most pairs first, with the answers of the first pair that differs."""
    outcomes = [(our.outcomes("cases"), their.outcomes("cases")) for our, their in pairs]
    gained = {
        case: [p for p, (ours, theirs) in enumerate(outcomes) if ours[case] and not theirs[case]] for case in shared
    }
    lost = {
        case: [p for p, (ours, theirs) in enumerate(outcomes) if theirs[case] and not ours[case]] for case in shared
    }
    differing = [case for case in shared if gained[case] or lost[case]]
    differing.sort(key=lambda case: -abs(len(gained[case]) - len(lost[case])))
    shown = differing[:SHOWN]
    first = {case: min(gained[case] + lost[case]) for case in shown}
    told = [
        _texts(store, run, {case for case in shown if first[case] == p}) for p, pair in enumerate(pairs) for run in pair
    ]
    listed = []
    for case in shown:
        ours, theirs = (told[2 * first[case] + side].get(case, {}) for side in (0, 1))
        listed.append(
            {
                "case": case,
                "gained": len(gained[case]),
                "lost": len(lost[case]),
                "problem": ours.get("problem"),
                "ours": ours.get("answer"),
                "theirs": theirs.get("answer"),
            }
        )
    counts = [sum(map(len, found.values())) for found in (gained, lost)]
    return {"gained": counts[0], "lost": counts[1], "differing": len(differing), "shown": listed}


def _texts(store: Store, run: Run, cases: set[str]) -> dict[str, dict[str, str]]:
    """{problem, answer} of some cases, as far as the job's models answered in words."""
    found = {}
    if run.texts is not None and cases:
        for line in lines_of(store.open(run.texts.sha256)):
            told = json.loads(line)
            if told["case"] in cases:
                answer = told["models"][run.row["model"]]["answer"]
                found[told["case"]] = {"problem": told["problem"], "answer": answer}
    return found
