"""What was found so far, as a page, a picture and numbers: whatever is done is in it, with its intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from allo_engine.data.statistics import bootstrap_difference, holm
from allo_engine.rounds import kind_of
from allo_engine.source import code_version
from tests.benchmarks.study.arms import ARMS, BASELINE, STRONG, TWICE, Scale
from tests.benchmarks.study.gates import arm_gates, can_gate, points, sft_gate
from tests.benchmarks.study.plot import plot
from tests.benchmarks.study.runner import Outcome, Point, chosen

Outcomes = Mapping[Point, Outcome]
Row = dict[str, Any]

DRAWS = 4000
"""Of each interval's bootstrap."""


def write_report(outcomes: Outcomes, scale: Scale, folder: Path) -> None:
    """NAME.md, NAME.svg and NAME.json in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tried, rows, options = at_every_rate(outcomes), compared(outcomes), by_option(outcomes)
    page = "\n".join(_page(outcomes, scale, tried, rows, options))
    (folder / f"{scale.name}.md").write_text(page, encoding="utf-8")
    (folder / f"{scale.name}.svg").write_text(_picture(tried), encoding="utf-8")
    numbers = {"code": code_version(), "validation": tried, "test": rows} | ({"options": options} if options else {})
    (folder / f"{scale.name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def compared(outcomes: Outcomes, best: Mapping[str, float] | None = None) -> list[Row]:
    """Each arm on the test problems at its chosen rate: its accuracy, and how far it is from SFT and the baseline on
    the seeds that both have, with the p of all comparisons with the baseline together (Holm)."""
    best = best or chosen(outcomes)
    rows = [_row(outcomes, arm, best[arm], "test", best) for arm in ARMS if arm in best]
    rows = [row for row in rows if row["seeds"]]
    against = {row["arm"]: row[f"against_{BASELINE}"] for row in rows if ARMS[row["arm"]].trains != "none"}
    ps = {arm: found["p"] for arm, found in against.items() if found}
    return [row | {"p": holm(ps).get(row["arm"])} for row in rows]


def by_option(outcomes: Outcomes) -> list[Row]:
    """The same by the option that a model finds the likeliest, at the rates that its answers chose; nothing where the
    problems list no options."""
    asked = {point: replace(found, cases=found.options) for point, found in outcomes.items() if found.options}
    return compared(asked, chosen(outcomes)) if asked else []


def at_every_rate(outcomes: Outcomes) -> list[Row]:
    """Each arm on the validation problems at every rate that is there."""
    best = chosen(outcomes)
    there = {(point.arm, point.rate) for point in outcomes if point.split == "validation"}
    return [
        _row(outcomes, arm, rate, "validation", best)
        for arm, rate in sorted(there, key=lambda one: (list(ARMS).index(one[0]), one[1]))
    ]


def _row(outcomes: Outcomes, arm: str, rate: float, split: str, best: Mapping[str, float]) -> Row:
    runs = _runs(outcomes, Point(arm, rate, 0, split))
    row: Row = {"arm": arm, "rate": rate, "seeds": len(runs)}
    if runs:
        mean = bootstrap_difference(list(runs.values()), [[0.0] * len(case) for case in runs.values()], draws=DRAWS)
        row |= {"accuracy": mean["difference"], "low": mean["low"], "high": mean["high"]}
        row |= _memory(outcomes[Point(arm, rate, min(runs), split)].peaks)
        logps = [outcomes[Point(arm, rate, seed, split)].option_logp for seed in runs]
        row |= {"option_logp": fmean(logp for logp in logps if logp is not None)} if None not in logps else {}
    for other in ("SFT", BASELINE, STRONG, TWICE):
        theirs = _runs(outcomes, Point(other, best[other], 0, split)) if other in best else {}
        row[f"against_{other}"] = None if (arm, rate) == (other, best.get(other)) else _difference(runs, theirs)
    return row


def _runs(outcomes: Outcomes, like: Point) -> dict[int, list[bool]]:
    """What the same point made of the same problems, by seed."""
    found = {point.seed: o.cases for point, o in outcomes.items() if point._replace(seed=0) == like}
    return dict(sorted(found.items()))


def _difference(ours: Mapping[int, list[bool]], theirs: Mapping[int, list[bool]]) -> dict[str, float] | None:
    both = [seed for seed in ours if seed in theirs]
    return bootstrap_difference([ours[s] for s in both], [theirs[s] for s in both], draws=DRAWS) if both else None


def _memory(peaks: Mapping[str, float]) -> Row:
    """The most that a stage of the job held, in bytes: any stage, and the arm's own training."""
    own = ("forget", "improve") if "improve" in peaks else ("warmup", "sft")
    return {"peak": max(peaks.values()), "own_peak": max(peaks[name] for name in peaks if kind_of(name) in own)}


def _picture(rows: list[Row]) -> str:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["rate"]:
            curves.setdefault(row["arm"], []).append((row["rate"], row["accuracy"]))
    level = next(row["accuracy"] for row in rows if row["arm"] == "SFT")
    return plot(curves, ("SFT", level)) if curves else ""


def _page(outcomes: Outcomes, scale: Scale, tried: list[Row], rows: list[Row], options: list[Row]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {n}" for name, n in scale.sizes.items())
    yield f"# The study, {scale.name}: {scale.model}\n"
    yield f"Written by `python -m tests.benchmarks.study`. Problems: {sizes}. Engine {code_version()[:8]}.\n"
    yield "## Gates\n"
    gates = [sft_gate(outcomes), *(arm_gates(outcomes) if can_gate(chosen(outcomes)) else ())]
    yield from (f"- {gate}" for gate in gates)
    yield f"\n## Accuracy over learning rate\n\n![accuracy over learning rate]({scale.name}.svg)\n"
    yield from _table(tried, ("SFT",))
    yield "\n## At the rate that seed 0's validation problems chose, on the test problems\n"
    there = {row["arm"] for row in rows}
    others = ("SFT", *(arm for arm in (TWICE, STRONG) if arm in there), BASELINE)
    yield from _table(rows, others)
    if options:
        yield "\n## By the option that the model finds the likeliest, of the same models\n"
        yield from _table(options, others)
        logps = ", ".join(f"{row['arm']} {row['option_logp']:.3f}" for row in options)
        yield f"\nMean log-probability of the right option among a problem's options, in nats: {logps}."
    yield "\nDifferences are in points. Intervals are of 95 %, over seeds and problems (of one seed: problems);"
    yield f"p is Holm's, of all differences from {BASELINE}. Memory is a whole process's at its peak: of a small"
    yield "model's, nearly all of it is the program's.\n"


def _table(rows: list[Row], others: Sequence[str]) -> Iterator[str]:
    """A line an arm and rate; with Holm's p where the baseline is among the others."""
    against = " | ".join(f"against {other}" for other in others) + (" | p" if BASELINE in others else "")
    yield f"| arm | | rate | seeds | right | {against} | its training held | its job held |"
    yield "|" + "---|" * (8 + against.count("|"))
    for row in rows:
        rate = f"{row['rate']:g}" if row["rate"] else ""
        right = f"{row['accuracy']:.1%} ({row['low']:.1%} … {row['high']:.1%})"
        differences = [points(found) if (found := row[f"against_{other}"]) else "" for other in others]
        if BASELINE in others:
            differences.append("" if row["p"] is None else f"{row['p']:.2g}")
        peaks = [f"{row[name] / 2**20:.0f} MiB" for name in ("own_peak", "peak")]
        cells = [row["arm"], ARMS[row["arm"]].what, rate, str(row["seeds"]), right, *differences, *peaks]
        yield f"| {' | '.join(cells)} |"
