"""What was found so far, as a page, a picture and numbers: whatever is done is in it, with its intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from allo_engine.data.statistics import bootstrap_difference, holm
from allo_engine.pipeline import code_version
from tests.benchmarks.study.arms import ARMS, BASELINE, Scale
from tests.benchmarks.study.gates import arm_gates, sft_gate
from tests.benchmarks.study.plot import Curve, plot
from tests.benchmarks.study.runner import Outcome, Point, chosen

Outcomes = Mapping[Point, Outcome]
Row = dict[str, Any]


def write_report(outcomes: Outcomes, scale: Scale, folder: Path) -> None:
    """NAME.md, NAME.svg and NAME.json in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = compared(outcomes)
    page = "\n".join(_page(outcomes, scale, rows))
    (folder / f"{scale.name}.md").write_text(page, encoding="utf-8")
    (folder / f"{scale.name}.svg").write_text(_picture(outcomes), encoding="utf-8")
    numbers = {"code": code_version(), "validation": _validation(outcomes), "test": rows}
    (folder / f"{scale.name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def compared(outcomes: Outcomes) -> list[Row]:
    """Each arm on the test problems at its chosen rate: its accuracy, and how far it is from the baseline on the seeds
    that both have, with the p of all these comparisons together (Holm)."""
    best, rows = chosen(outcomes), []
    for arm in ARMS:
        if arm in best and (runs := _runs(outcomes, arm, best[arm])):
            mean = bootstrap_difference(list(runs.values()), [[0.0] * len(case) for case in runs.values()])
            rows.append(
                {"arm": arm, "rate": best[arm], "seeds": len(runs)}
                | {"accuracy": mean["difference"], "low": mean["low"], "high": mean["high"]}
                | {f"against_{other}": _against(outcomes, runs, other, best) for other in (BASELINE, "SFT")}
                | _memory(outcomes[Point(arm, best[arm], min(runs), "test")].peaks)
            )
    ps = {row["arm"]: row[f"against_{BASELINE}"]["p"] for row in rows if row[f"against_{BASELINE}"]}
    for row in rows:
        row["p"] = holm(ps).get(row["arm"])
    return rows


def _runs(outcomes: Outcomes, arm: str, rate: float) -> dict[int, list[bool]]:
    """What the arm made of the test problems, by seed."""
    found = {p.seed: o.cases for p, o in outcomes.items() if (p.arm, p.rate, p.split) == (arm, rate, "test")}
    return dict(sorted(found.items()))


def _against(
    outcomes: Outcomes, runs: Mapping[int, list[bool]], other: str, best: Mapping[str, float]
) -> dict[str, float] | None:
    theirs = _runs(outcomes, other, best[other]) if other in best else {}
    both = [seed for seed in runs if seed in theirs]
    if not both or all(runs[seed] is theirs[seed] for seed in both):
        return None
    return bootstrap_difference([runs[seed] for seed in both], [theirs[seed] for seed in both])


def _memory(peaks: Mapping[str, float]) -> Row:
    """The most that a stage of the job held, in bytes: any stage, and the arm's own training."""
    own = ("forget", "improve") if "improve" in peaks else ("warmup", "sft")
    return {"peak": max(peaks.values()), "own_peak": max(peaks.get(name, 0.0) for name in own)}


def _validation(outcomes: Outcomes) -> list[Row]:
    """Accuracy on the validation problems at every rate, the mean of the seeds that are there."""
    found: dict[tuple[str, float], list[float]] = {}
    for point, outcome in outcomes.items():
        if point.split == "validation":
            found.setdefault((point.arm, point.rate), []).append(outcome.accuracy)
    order = list(ARMS)
    return [
        {"arm": arm, "rate": rate, "seeds": len(shares), "accuracy": fmean(shares)}
        for (arm, rate), shares in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]


def _picture(outcomes: Outcomes) -> str:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in _validation(outcomes):
        if row["rate"]:
            curves.setdefault(f"{row['arm']}", []).append((row["rate"], row["accuracy"]))
    level = next(row["accuracy"] for row in _validation(outcomes) if row["arm"] == "SFT")
    shown: dict[str, Curve] = {arm: sorted(curve) for arm, curve in curves.items()}
    return plot(shown, ("SFT", level)) if shown else ""


def _page(outcomes: Outcomes, scale: Scale, rows: list[Row]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {n}" for name, n in scale.sizes.items())
    yield f"# The study, {scale.name}: {scale.model}\n"
    yield f"Written by `python -m tests.benchmarks.study`. Problems: {sizes}. Engine {code_version()[:8]}.\n"
    yield "## Gates\n"
    gates = [sft_gate(outcomes), *(arm_gates(outcomes) if {"A", "D"} <= set(chosen(outcomes)) else ())]
    yield from (f"- {gate}" for gate in gates)
    yield f"\n## Accuracy over learning rate\n\n![accuracy over learning rate]({scale.name}.svg)\n"
    yield "| arm | | rate | seeds | right of the validation problems |\n|---|---|---|---|---|"
    for row in _validation(outcomes):
        rate = f"{row['rate']:g}" if row["rate"] else ""
        yield f"| {row['arm']} | {ARMS[row['arm']].what} | {rate} | {row['seeds']} | {row['accuracy']:.1%} |"
    yield "\n## At the rate that seed 0's validation problems chose, on the test problems\n"
    yield f"Differences in points, with 95 % intervals over seeds and problems; p (Holm's) is of {BASELINE}'s.\n"
    yield f"| arm | | rate | seeds | right | against SFT | against {BASELINE} | p | peak of its training | of the job |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from map(_line, rows)
    yield ""


def _line(row: Row) -> str:
    what, rate = ARMS[row["arm"]].what, f"{row['rate']:g}" if row["rate"] else ""
    right = f"{row['accuracy']:.1%} ({row['low']:.1%} … {row['high']:.1%})"
    p = "" if row["p"] is None else f"{row['p']:.2g}"
    differences = " | ".join(_points(row[f"against_{other}"]) for other in ("SFT", BASELINE))
    peaks = f"{row['own_peak'] / 2**20:.0f} MiB | {row['peak'] / 2**20:.0f} MiB"
    return f"| {row['arm']} | {what} | {rate} | {row['seeds']} | {right} | {differences} | {p} | {peaks} |"


def _points(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:.1f} … {100 * found['high']:.1f})"
