"""Evaluation on held-out data of every model that a job made: base, SFT, warm-up (= vanilla DPO), forgotten, aligned.

Problems: greedy accuracy with Wilson's 95 % interval; an answer that cannot be read counts as not right, and is counted
apart. Preferences: accuracy and margin of the implicit reward β(logπ − logπ_start). Chats: mean cross-entropy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from allo_engine import sampling
from allo_engine.checkpoints.delta import apply_delta
from allo_engine.checkpoints.folder import context_length
from allo_engine.config import EvaluateConfig
from allo_engine.data.answers import Verdict, compare, reference
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED, Inputs, fitting_groups, pairs, problems, supervised_examples
from allo_engine.data.records import Problem, read_lines
from allo_engine.data.statistics import paired_difference, wilson
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.logps import everyones, score
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group, singles
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped, Tick
from allo_engine.sampling import Request, Settings
from allo_engine.sampling.kept import answers
from allo_engine.training.objectives import reward_figures

Line = dict[str, Any]
"""One model's line of the report."""


@dataclass(frozen=True)
class Candidate:
    """A model by its name: its folder, and the sparse checkpoint whose values it takes, if any."""

    name: str
    folder: Path
    delta: Path | None = None

    def load(self, config: EvaluateConfig) -> PreTrainedModel:
        model = load_model(self.folder, dtype_of(config.precision))
        if self.delta is not None:
            apply_delta(model, self.delta, self.folder)
        return model


Evaluation = Callable[[Candidate, Tick], Line]


def run(config: EvaluateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    size, evaluation = _evaluation(config, inputs, work, report)
    total = size * sum(name in inputs for name in ("base", "sft", "warmup", "forget", "improve"))
    rows: list[Line] = []
    for candidate in _models(inputs):
        kept = work / f"{candidate.name}.json"
        row = here().firsts(json.loads(kept.read_text()) if kept.exists() else None)
        if row is None:
            row = {"model": candidate.name, **evaluation(candidate, _ticker(report, size * len(rows), total))}
            work.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(row))
            kept.with_suffix(".tmp").replace(kept)
        rows.append(row)
        _compare_with_warmup(rows)
        report.message(f"Evaluated {candidate.name}.", data=_figures(rows[-1]))
    (outputs / "report").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"models": rows}, indent=2, ensure_ascii=False)
    (outputs / "report" / "report.json").write_text(text, encoding="utf-8")
    return {f"{row['model']}_{key}": value for row in rows for key, value in _figures(row).items()}


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


def _evaluation(config: EvaluateConfig, inputs: Inputs, work: Path, report: Report) -> tuple[int, Evaluation]:
    """How much work one model is, and the evaluation that the held-out file's format asks for."""
    encoder = Encoder.of(inputs["base"], config)
    first = next(read_lines(inputs["heldout"] / UPLOADED))
    if "prompt" in first or "preferred_output" in first:
        return _on_pairs(config, inputs, encoder, work, report)
    if "messages" in first:
        return _on_chats(config, inputs, encoder, work, report)
    return _on_problems(config, inputs, encoder, work, report)


def _on_problems(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, work: Path, report: Report
) -> tuple[int, Evaluation]:
    given = problems(inputs["heldout"])
    prompts = [encoder.prompt(problem.problem) for problem in given]
    context = context_length(inputs["base"])
    longest = min(config.max_prompt_tokens, context - 1)
    requests = [
        Request(number, prompt, config.seed, min(config.max_response_tokens, context - len(prompt)))
        for number, prompt in enumerate(prompts)
        if len(prompt) <= longest
    ]
    if not requests:
        raise StageError("nothing_to_evaluate", f"All held-out problems are longer than {longest} tokens.")
    settings = Settings(encoder.ends, rows=config.decoding_batch)

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        how = (dtype_of(config.precision), report, work, config.backend)
        opened = partial(sampling.open, candidate.folder, candidate.delta, *how)
        found = answers(requests, settings, opened, work / f"{candidate.name}.jsonl", report, tick)
        texts = {number: encoder.decode(response.ids) for number, (response,) in found.items()}
        verdicts = {number: _verdict(text, given[number]) for number, text in texts.items()}
        right = sum(verdict is Verdict.RIGHT for verdict in verdicts.values())
        low, high = wilson(right, len(requests))
        return {
            "accuracy": right / len(requests),
            "accuracy_low": low,
            "accuracy_high": high,
            "right": right,
            "unparsed": sum(verdict is Verdict.UNPARSED for verdict in verdicts.values()),
            "problems": len(requests),
            "cases": [verdicts[number] is Verdict.RIGHT for number in sorted(verdicts)],
            "examples": [
                {"problem": given[number].problem, "answer": texts[number], "verdict": verdicts[number].value}
                for number in sorted(texts)[: config.examples]
            ],
        }

    return len(requests), evaluate


def _verdict(text: str, problem: Problem) -> Verdict:
    gold = reference({"answer": problem.answer, "solution": problem.solution})
    return compare(text, gold) if gold else Verdict.UNPARSED


def _on_pairs(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, work: Path, report: Report
) -> tuple[int, Evaluation]:
    groups = fitting_groups(pairs(inputs["heldout"], encoder), config, inputs["base"], report)
    rows = _rows(config, inputs, work, report)
    start = inputs.get("sft", inputs["base"])  # in the policies' precision: a model against itself has margin 0
    reference = _sums(load_model(start, dtype_of(config.precision)), groups, rows, lambda _: None)

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        sums = _sums(candidate.load(config), groups, rows, tick)
        ratio = {key: value - reference[key] for key, value in sums.items()}
        found = [
            (ratio[group.key, chosen], ratio[group.key, rejected])
            for group in groups
            for chosen, rejected in group.items
        ]
        chosen_P, rejected_P = torch.tensor(found, dtype=torch.float64).T
        figures = reward_figures(chosen_P, rejected_P, config.beta)
        right, count = float(figures["reward_accuracy"][0]), len(found)
        low, high = wilson(round(right), count)
        return {
            "accuracy": right / count,
            "accuracy_low": low,
            "accuracy_high": high,
            "margin": float(figures["reward_margin"][0]) / count,
            "pairs": len(found),
            "cases": [chosen > rejected for chosen, rejected in found],
        }

    return sum(group.tokens() for group in groups), evaluate


def _on_chats(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, work: Path, report: Report
) -> tuple[int, Evaluation]:
    examples = supervised_examples(inputs["heldout"], encoder)
    groups = [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]
    groups = fitting_groups(groups, config, inputs["base"], report)
    rows = _rows(config, inputs, work, report)
    tokens = sum(len(group.scored(index)) for group in groups for index in group.responses)

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        sums = _sums(candidate.load(config), groups, rows, tick)
        return {"cross_entropy": -sum(sums.values()) / tokens, "tokens": tokens}

    return sum(group.tokens() for group in groups), evaluate


def _rows(config: EvaluateConfig, inputs: Inputs, work: Path, report: Report) -> RowBudget:
    """For all models, in a resumed run too: equal rows give equal bits."""
    return RowBudget(fitting_tokens(config, inputs["base"], "forward"), work, report)


def _sums(model: PreTrainedModel, groups: list[Group], rows: RowBudget, tick: Tick) -> dict[tuple[int, int], float]:
    """Σ logπ of each response, by (group key, response)."""
    scores = everyones(rows.fit(lambda longest: score(model, groups, longest, tick), groups))
    return {key: float(logps.sum()) for key, logps in scores.items()}


def _figures(row: Line) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
