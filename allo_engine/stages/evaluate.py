"""Evaluation on held-out data of every model that a job made: base, SFT, warm-up (= vanilla DPO), forgotten, aligned.

Problems: greedy accuracy with Wilson's 95 % interval, pass@k of samples (arXiv 2107.03374), the most likely option of
multiple choice. Preferences: accuracy, margin and calibration of the implicit reward β(logπ − logπ_start). Chats: mean
cross-entropy. See the files of `evaluating`.

The report holds every case's outcome under a digest of the case's content, so that models of two jobs can be compared
case by case; the answers themselves stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from allo_engine.config import EvaluateConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED, Inputs
from allo_engine.data.records import read_lines
from allo_engine.data.statistics import paired_difference
from allo_engine.evaluating.bench import Bench, Candidate, Evaluation, Line
from allo_engine.evaluating.chats import on_chats
from allo_engine.evaluating.preferences import on_preferences
from allo_engine.evaluating.problems import on_problems
from allo_engine.ranks import here
from allo_engine.report import Report, Stopped, Tick


def run(config: EvaluateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    base, start = inputs["base"], inputs.get("sft", inputs["base"])
    evaluation = _evaluation(Bench(config, inputs["heldout"], base, start, Encoder.of(base, config), work, report))
    total = evaluation.size * sum(1 for _ in _models(inputs))
    rows: list[Line] = []
    for candidate in _models(inputs):
        kept = work / f"{candidate.name}.json"
        row = here().firsts(json.loads(kept.read_text()) if kept.exists() else None)
        if row is None:
            tick = _ticker(report, evaluation.size * len(rows), total)
            row = {"model": candidate.name, **evaluation.of(candidate, tick)}
            work.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(row))
            kept.with_suffix(".tmp").replace(kept)
        rows.append(row)
        _compare_with_warmup(rows)
        report.message(f"Evaluated {candidate.name}.", data=_figures(rows[-1]))
    _write(outputs / "report", rows, evaluation.cases)
    return {f"{row['model']}_{key}": value for row in rows for key, value in _figures(row).items()}


def _evaluation(bench: Bench) -> Evaluation:
    """The one that the held-out file's format asks for."""
    first = next(read_lines(bench.heldout / UPLOADED))
    if "prompt" in first or "preferred_output" in first:
        return on_preferences(bench)
    if "messages" in first:
        return on_chats(bench)
    return on_problems(bench)


def _ticker(report: Report, before: int, total: int) -> Tick:
    """Told of one model's evaluation by each rank; the models before it were so much work."""
    tally = here().tally()

    def tick(amount: int) -> None:
        report.progress(min(before + tally(amount), total), total)
        if report.stop_requested:
            raise Stopped

    return tick


def _compare_with_warmup(rows: list[Line]) -> None:
    """Say of the newest model how far it is from the warm-up, which is vanilla DPO, on the very same cases."""
    warmup = next((row for row in rows if row["model"] == "warmup"), None)
    if warmup and rows[-1] is not warmup and "cases" in warmup:
        rows[-1]["against_warmup"] = paired_difference(rows[-1]["cases"], warmup["cases"])


def _models(inputs: Inputs) -> Iterator[Candidate]:
    """Each model. Sparse checkpoints are values of the model that alignment started from."""
    for name in ("base", "sft", "warmup"):
        if name in inputs:
            yield Candidate(name, inputs[name])
    for name in ("forget", "improve"):
        if name in inputs:
            yield Candidate(name, inputs.get("sft", inputs["base"]), inputs[name])


def _write(folder: Path, rows: list[Line], cases: list[str]) -> None:
    """report.json; and texts.jsonl, a line a case, where models answered in words."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {row["model"]: row.pop("texts") for row in rows if "texts" in row}
    report = json.dumps({"models": rows, "cases": cases}, indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(report, encoding="utf-8")
    if texts:
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as stream:
            for case, found in zip(cases, zip(*texts.values(), strict=True), strict=True):
                answers = {
                    name: {"answer": one["answer"], "verdict": one["verdict"]}
                    for name, one in zip(texts, found, strict=True)
                }
                line = {"case": case, "problem": found[0]["problem"], "models": answers}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _figures(row: Line) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
