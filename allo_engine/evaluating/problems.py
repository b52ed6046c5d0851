"""Held-out problems: greedy accuracy, pass@k of samples, and the option that a model finds the most likely.

An answer that cannot be read counts as not right, and is counted apart. Shares have Wilson's 95 % interval, which is
wide enough for the mean of any values between 0 and 1, such as pass@k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from allo_engine import sampling
from allo_engine.checkpoints.folder import context_length
from allo_engine.data.answers import Verdict, compare, reference
from allo_engine.data.reading import problems
from allo_engine.data.records import Problem
from allo_engine.data.statistics import pass_at_k
from allo_engine.evaluating.bench import Bench, Candidate, Evaluation, Line, names, share
from allo_engine.evaluating.options import on_options
from allo_engine.model.loading import dtype_of
from allo_engine.report import StageError, Tick
from allo_engine.sampling import Request, Settings
from allo_engine.sampling.kept import answers
from allo_engine.sampling.known import Known
from allo_engine.source import stage_code


@dataclass(frozen=True)
class _Questions:
    """The problems that fit, and what is asked of each."""

    bench: Bench
    problems: list[Problem]
    requests: list[Request]

    def verdicts(self, candidate: Candidate, samples: int, tick: Tick) -> list[list[tuple[Verdict, str]]]:
        """Each problem's answers, greedy where no samples are asked for."""
        bench, config = self.bench, self.bench.config
        ends, rows = bench.encoder.ends, config.decoding_batch
        drawn = Settings(ends, config.temperature, config.top_p, rows) if samples else Settings(ends, rows=rows)
        requests = [replace(one, samples=range(samples or 1)) for one in self.requests]
        dtype = dtype_of(config.precision)
        how = (dtype, bench.report, bench.work, config.backend)
        opened = partial(sampling.open, candidate.folder, candidate.delta, *how)
        kept = bench.work / f"{bench.kept}{candidate.name}{'.samples' if samples else ''}.jsonl"
        known = None
        if dtype == torch.float32:
            model = f"{candidate.weights()}/{sampling.chosen(config.backend)}/{stage_code('evaluate')}"
            known = Known(bench.cache, model, drawn)
        found = answers(requests, drawn, opened, kept, bench.report, tick, known)
        texts = [[bench.encoder.decode(one.ids) for one in found[request.number]] for request in requests]
        return [
            [(_verdict(text, problem), text) for text in own] for problem, own in zip(self.problems, texts, strict=True)
        ]


def on_problems(bench: Bench) -> Evaluation:
    """Raises StageError where no problem fits."""
    config, questions = bench.config, _questions(bench)
    asked = zip(questions.requests, questions.problems, strict=True)
    options = on_options(bench, [(request.number, request.prompt, problem) for request, problem in asked])

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        line = _greedy(questions, candidate, tick)
        if config.samples:
            line |= _sampled(questions, candidate, tick)
        if options:
            line |= options(candidate, tick)
        return line

    cases = names([problem.problem, _gold(problem)] for problem in questions.problems)
    return Evaluation(len(cases) * (1 + config.samples), cases, evaluate)


def _questions(bench: Bench) -> _Questions:
    config, context = bench.config, context_length(bench.base)
    longest = min(config.max_prompt_tokens, context - 1)
    given = problems(bench.heldout)
    prompts = [bench.encoder.prompt(problem.problem) for problem in given]
    requests = [
        Request(number, prompt, config.seed, min(config.max_response_tokens, context - len(prompt)))
        for number, prompt in enumerate(prompts)
        if len(prompt) <= longest
    ]
    if not requests:
        raise StageError("nothing_to_evaluate", f"All held-out problems are longer than {longest} tokens.")
    return _Questions(bench, [given[request.number] for request in requests], requests)


def _greedy(questions: _Questions, candidate: Candidate, tick: Tick) -> Line:
    found = [one for (one,) in questions.verdicts(candidate, 0, tick)]
    right = [verdict is Verdict.RIGHT for verdict, _ in found]
    texts = [
        {"problem": problem.problem, "answer": text, "verdict": verdict.value}
        for problem, (verdict, text) in zip(questions.problems, found, strict=True)
    ]
    return {
        **share("accuracy", sum(right), len(right)),
        "right": sum(right),
        "unparsed": sum(verdict is Verdict.UNPARSED for verdict, _ in found),
        "problems": len(right),
        "cases": right,
        "examples": texts[: questions.bench.config.examples],
        "texts": texts,
    }


def _sampled(questions: _Questions, candidate: Candidate, tick: Tick) -> Line:
    samples = questions.bench.config.samples
    found = questions.verdicts(candidate, samples, tick)
    rights = [sum(verdict is Verdict.RIGHT for verdict, _ in drawn) for drawn in found]
    line: Line = {"samples": samples, "sampled_right": rights}
    for k in questions.bench.config.ks():
        line |= share(f"pass_at_{k}", sum(pass_at_k(samples, right, k) for right in rights), len(rights))
    return line


def _gold(problem: Problem) -> str | None:
    return reference({"answer": problem.answer, "solution": problem.solution})


def _verdict(text: str, problem: Problem) -> Verdict:
    gold = _gold(problem)
    return compare(text, gold) if gold else Verdict.UNPARSED
