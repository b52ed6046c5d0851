"""Evaluation on held-out data of every model that a job made: base, SFT, warm-up (= vanilla DPO), forgotten, aligned,
and those of later rounds.

Problems: greedy accuracy with Wilson's 95 % interval, pass@k of samples (arXiv 2107.03374), the most likely option of
multiple choice. Preferences: accuracy, margin and calibration of the implicit reward β(logπ − logπ_start). Chats: mean
cross-entropy. See the files of `evaluating`. A second held-out file, about something else, is put to the first and the
last model: what was lost on the way. Tasks of lm-evaluation-harness are put to every model.

The report holds every case's outcome under a digest of the case's content, so that models of two jobs can be compared
case by case; the answers themselves stand beside it. What the same weights answered to the same problems before, in
another job's evaluation on this machine, they are not asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from allo_engine.checked import checked, whole
from allo_engine.checkpoints.delta import FILE
from allo_engine.configs.evaluate import EvaluateConfig
from allo_engine.data.judge import Duel, judged
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED, Inputs
from allo_engine.data.records import read_lines
from allo_engine.data.statistics import bootstrap_difference, paired_difference
from allo_engine.evaluating.bench import Bench, Candidate, Evaluation, Line
from allo_engine.evaluating.chats import on_chats
from allo_engine.evaluating.harness import on_harness
from allo_engine.evaluating.preferences import on_preferences
from allo_engine.evaluating.problems import on_problems
from allo_engine.ranks import here
from allo_engine.report import Report, Stopped, Tick
from allo_engine.rounds import TITLES, kind_of, round_of
from allo_engine.teacher import TEACHER_KEY, Judge


def run(config: EvaluateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    base, start = inputs["base"], inputs.get("sft", inputs["base"])
    encoder, models = Encoder.of(base, config), list(_models(inputs))
    cache = inputs.get("cache", work)
    common = (base, start, encoder, cache, work, report)
    bench = Bench(config, inputs["heldout"], *common)
    evaluation = _evaluation(bench)
    if config.harness is not None:
        evaluation = _and_then(evaluation, on_harness(bench))
    retention = None
    if "retention" in inputs:
        kept = config.of_retention()
        retention = _evaluation(Bench(kept, inputs["retention"], *common, "retention."))
    total = evaluation.size * len(models) + (retention.size * len({0, len(models) - 1}) if retention else 0)
    rows: list[Line] = []
    done = 0
    for candidate in models:
        held_against = retention if candidate in (models[0], models[-1]) else None
        rows.append(_evaluated(candidate, evaluation, held_against, work, _ticker(report, done, total)))
        done += evaluation.size + (held_against.size if held_against else 0)
        report.checkpoint(done)
        _compare_with_warmup(rows)
        report.message(f"Evaluated {candidate.name}.", data=_figures(rows[-1]))
    if retention and len(rows) > 1:
        rows[-1]["retention"]["against_base"] = _difference(rows[-1]["retention"], rows[0]["retention"])
    if config.judge is not None and len(rows) > 1:
        rows[-1] |= _judged(config.judge, rows, cache, report)
        report.message("Judged.", data=_figures(rows[-1]))
    _write(outputs / "report", rows, evaluation.cases)
    return {f"{row['model']}_{key}": value for row in rows for key, value in _figures(row).items()}


def _evaluated(
    candidate: Candidate, evaluation: Evaluation, retention: Evaluation | None, work: Path, tick: Tick
) -> Line:
    """A model's line: found, or kept by a run that was cut."""
    kept = work / f"{candidate.name}.json"
    row = here().firsts(whole(kept.read_bytes()) if kept.exists() else None)
    if row is None:
        row = {"model": candidate.name, **evaluation.of(candidate, tick)}
        if retention:
            found = retention.of(candidate, tick)
            row["retention"] = {key: value for key, value in found.items() if key not in ("texts", "examples")}
        work.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".tmp").write_text(checked(row))
        kept.with_suffix(".tmp").replace(kept)
    return row


def _evaluation(bench: Bench) -> Evaluation:
    """The one that the held-out file's format asks for."""
    first = next(read_lines(bench.heldout / UPLOADED))
    if "prompt" in first or "preferred_output" in first:
        return on_preferences(bench)
    if "messages" in first:
        return on_chats(bench)
    return on_problems(bench)


def _and_then(evaluation: Evaluation, more: Callable[[Candidate, Tick], Line]) -> Evaluation:
    return replace(evaluation, of=lambda candidate, tick: evaluation.of(candidate, tick) | more(candidate, tick))


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
        rows[-1]["against_warmup"] = _difference(rows[-1], warmup)


def _difference(ours: Line, theirs: Line) -> dict[str, float]:
    """Of shares, or of nats a token, case by case."""
    if "cases" in ours:
        return paired_difference(ours["cases"], theirs["cases"])
    return bootstrap_difference([ours["losses"]], [theirs["losses"]])


def _judged(judge: Judge, rows: list[Line], cache: Path, report: Report) -> Line:
    """What the judge thinks of the last model's answers beside another's; one rank asks."""
    names = [row["model"] for row in rows[:-1]]
    against = judge.against or ("warmup" if "warmup" in names else names[0])
    found: Line = {}
    if here().leads:
        pairs = zip(rows[-1]["texts"], rows[names.index(against)]["texts"], strict=True)
        duels = [Duel(ours["problem"], ours["answer"], theirs["answer"]) for ours, theirs in pairs]
        key, setting = os.environ.get(TEACHER_KEY), "evaluate.judge"
        found = {
            "judged_against": against,
            **judged(duels[: judge.problems], judge, key, cache / "judge", report, setting),
        }
    return here().firsts(found)


def _models(inputs: Inputs) -> Iterator[Candidate]:
    """Each model, round by round. Sparse checkpoints are values of the model that alignment started from."""
    kinds = tuple(TITLES)
    made = [name for name in inputs if kind_of(name) in kinds]
    for name in sorted(made, key=lambda name: (round_of(name), kinds.index(kind_of(name)))):
        if (inputs[name] / FILE).exists():
            yield Candidate(name, inputs.get("sft", inputs["base"]), inputs[name])
        else:
            yield Candidate(name, inputs[name])


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
    own = {key: value for key, value in row.items() if isinstance(value, int | float)}
    lost = _figures(row["retention"]) if "retention" in row else {}
    tasks = row.get("harness", {})
    return (
        own
        | {f"retention_{key}": value for key, value in lost.items()}
        | {f"{task}_{key}": value for task, metrics in tasks.items() for key, value in metrics.items()}
    )
