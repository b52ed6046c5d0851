"""Pairing: right responses against wrong ones of the same problem; all distinct wrong ones go to forgetting.

A response is right, wrong or unparsed. Unparsed is not wrong: a text whose answer cannot be read is neither preferred
nor rejected nor forgotten. A wrong response's correction is the right response of its problem at the smallest token
edit distance, or the reference solution where no sample is right. With pass_rate, problems that are solved too seldom
or too often give no pairs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from allo_engine.configs.pair import PairConfig
from allo_engine.data.answers import Verdict, compare, reference
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs
from allo_engine.data.records import Ids, NegativeGroup, PairGroup, SampledProblem, write_lines
from allo_engine.report import Report, StageError


def run(config: PairConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:  # noqa: ARG001
    encoder = Encoder.of(inputs["model"])
    sampled = SampledProblem.read(inputs["responses"] / "responses.jsonl")
    pair_groups: list[PairGroup] = []
    negative_groups: list[NegativeGroup] = []
    counts: Counter[Verdict] = Counter()
    outside = 0
    for number, problem in enumerate(sampled):
        own: Counter[Verdict] = Counter()
        by_verdict = judge(problem, own)
        counts += own
        right, wrong = by_verdict[Verdict.RIGHT], by_verdict[Verdict.WRONG]
        if right and wrong and not solved_within(own[Verdict.RIGHT] / own.total(), config.pass_rate):
            outside += 1
        elif right and wrong:
            pair_groups.append(pair_up(problem.prompt_ids, right, wrong, config.max_pairs, f"{config.seed}/{number}"))
        if wrong:
            candidates = right or [encoder.response(problem.solution)]
            negative_groups.append(negatives_of(problem, wrong[: config.max_negatives], candidates))
        report.progress(number + 1, len(sampled))
    _require_pairs(pair_groups, counts, outside)
    write_lines(outputs / "pairs" / "pairs.jsonl", pair_groups)
    write_lines(outputs / "negatives" / "negatives.jsonl", negative_groups)
    return {
        "right": counts[Verdict.RIGHT],
        "wrong": counts[Verdict.WRONG],
        "unparsed": counts[Verdict.UNPARSED],
        "pairs": sum(len(group.pairs) for group in pair_groups),
        "paired_problems": len(pair_groups),
        "outside_pass_rate": outside,
        "negatives": sum(len(group.responses) for group in negative_groups),
    }


def judge(problem: SampledProblem, counts: Counter[Verdict]) -> dict[Verdict, list[Ids]]:
    """A problem's distinct responses by verdict, in the order of their sampling. Counts every response."""
    gold = reference({"answer": problem.answer, "solution": problem.solution})
    found: dict[Verdict, dict[tuple[int, ...], Ids]] = {verdict: {} for verdict in Verdict}
    for ids, text, finished in zip(problem.responses, problem.texts, problem.finished, strict=True):
        verdict = compare(text, gold) if gold and finished else Verdict.UNPARSED
        counts[verdict] += 1
        found[verdict].setdefault(tuple(ids), ids)
    return {verdict: list(distinct.values()) for verdict, distinct in found.items()}


def solved_within(share: float, rates: tuple[float, float]) -> bool:
    """Whether a problem of which this share of responses is right is neither too hard nor too easy for pairs."""
    return rates[0] <= share <= rates[1]


def pair_up(prompt: Ids, right: Sequence[Ids], wrong: Sequence[Ids], most: int, seed: str) -> PairGroup:
    """Up to `most` pairs from right × wrong, drawn without repetition, with the responses that they use."""
    product = [(chosen, rejected) for chosen in range(len(right)) for rejected in range(len(wrong))]
    drawn = random.Random(seed).sample(product, min(most, len(product)))  # noqa: S311 - a draw, not a secret
    chosen = sorted({pair[0] for pair in drawn})
    rejected = sorted({pair[1] for pair in drawn})
    pairs = [(chosen.index(first), len(chosen) + rejected.index(second)) for first, second in drawn]
    return PairGroup(prompt, [right[place] for place in chosen] + [wrong[place] for place in rejected], pairs)


def negatives_of(problem: SampledProblem, wrong: list[Ids], candidates: Sequence[Ids]) -> NegativeGroup:
    corrections = [min(candidates, key=lambda ids: int(Levenshtein.distance(ids, response))) for response in wrong]
    return NegativeGroup(problem.problem, problem.solution, problem.prompt_ids, wrong, corrections, problem.answer)


def _require_pairs(groups: Sequence[PairGroup], counts: Counter[Verdict], outside: int) -> None:
    if groups:
        return
    right, wrong, unparsed = (counts[verdict] for verdict in Verdict)
    advice = {
        "no_right_answers": "Run sft first, sample more (sample.n), or give easier problems.",
        "no_wrong_answers": "The model solves all of these problems: give harder ones, or raise sample.temperature.",
        "no_pairs": f"{outside} problems have both, outside pair.pass_rate: widen it."
        if outside
        else "No problem has both a right and a wrong response: raise sample.n.",
    }
    code = "no_right_answers" if not right else "no_wrong_answers" if not wrong else "no_pairs"
    raise StageError(
        code,
        f"No pairs: of {right + wrong + unparsed} responses {right} are right, {wrong} wrong, {unparsed} "
        f"without a readable answer. {advice[code]}",
    )
