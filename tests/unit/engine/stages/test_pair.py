from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch

from allo_engine.config import ForgetConfig, PairConfig
from allo_engine.data.answers import Verdict
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup, PairGroup, SampledProblem, write_lines
from allo_engine.data.rewriting import INSTRUCTION, Rewriting
from allo_engine.model.sequences import build_row
from allo_engine.report import Report, StageError
from allo_engine.stages import pair
from allo_engine.stages.forget import token_weights
from allo_engine.stages.pair import judge, negatives_of, pair_up
from tests.tiny import tiny_tokenizer


def sampled(*texts: str, finished: bool = True) -> SampledProblem:
    ids = [[ord(letter) for letter in text] for text in texts]
    return SampledProblem("2 + 3?", "The answer is 5", "5", [9], ids, list(texts), [finished] * len(texts))


def test_unparsed_is_not_wrong_and_doubles_count_once() -> None:
    counts: Counter[Verdict] = Counter()
    texts = ("The answer is 5", "The answer is 5", "The answer is 6", "I do not know", "The answer is")
    found = judge(sampled(*texts), counts)
    assert {verdict: len(ids) for verdict, ids in found.items()} == {"right": 1, "wrong": 1, "unparsed": 2}
    assert counts == {"right": 2, "wrong": 1, "unparsed": 2}


def test_a_response_that_was_cut_off_is_unparsed() -> None:
    found = judge(sampled("The answer is 6", finished=False), Counter())
    assert not found[Verdict.WRONG]


def test_pairs_are_drawn_without_repetition_and_follow_the_seed() -> None:
    right, wrong = [[1], [2], [3]], [[4], [5]]
    group = pair_up([0], right, wrong, 5, "seed")
    texts = [(group.responses[chosen], group.responses[rejected]) for chosen, rejected in group.pairs]
    assert len({(tuple(chosen), tuple(rejected)) for chosen, rejected in texts}) == 5
    assert all(chosen in right and rejected in wrong for chosen, rejected in texts)
    assert group == pair_up([0], right, wrong, 5, "seed")


def test_all_pairs_are_taken_where_there_are_few() -> None:
    assert len(pair_up([0], [[1]], [[2], [3]], 5, "seed").pairs) == 2


def paired(root: Path, model: Path, report: Report, rates: tuple[float, float]) -> dict[str, float]:
    """Of four responses each, one problem has one right, the next two, the last three."""
    problems = [
        sampled(*(f"The answer is {5 if place < right else 6 + place}" for place in range(4))) for right in (1, 2, 3)
    ]
    write_lines(root / "responses" / "responses.jsonl", problems)
    inputs = {"model": model, "responses": root / "responses"}
    return pair.run(PairConfig(pass_rate=rates), inputs, root / "out", root / "work", report)


def test_problems_outside_the_pass_rate_give_no_pairs_and_are_counted(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    everything = paired(tmp_path, model_folder, report, (0.0, 1.0))
    assert (everything["paired_problems"], everything["outside_pass_rate"]) == (3, 0)
    metrics = paired(tmp_path, model_folder, report, (0.5, 0.5))
    assert (metrics["paired_problems"], metrics["outside_pass_rate"]) == (1, 2)
    (kept,) = PairGroup.read(tmp_path / "out" / "pairs" / "pairs.jsonl")
    assert len(kept.pairs) == metrics["pairs"] == 2  # of two equal right ones and two wrong ones
    assert metrics["negatives"] == everything["negatives"]
    with pytest.raises(StageError, match=r"3 problems have both.*widen"):
        paired(tmp_path, model_folder, report, (0.9, 1.0))


def test_the_correction_is_the_right_response_at_the_smallest_edit_distance() -> None:
    near, far = [1, 2, 3, 4], [9, 9, 9, 9]
    assert negatives_of(sampled("x"), [[1, 2, 3, 5]], [far, near]).corrections == [near]


def test_the_rewriter_is_scored_on_the_very_ids_of_the_prediction() -> None:
    encoder = Encoder(tiny_tokenizer())
    prediction, correction = [70, 71, 72, 1], [70, 73, 1]
    group = NegativeGroup("2 + 3?", "The answer is 5", [9], [prediction], [correction])
    scoring, training = Rewriting(encoder).scoring(4, group), Rewriting(encoder).training(4, group)
    assert build_row([scoring]).targets.tolist() == prediction
    assert build_row([training]).targets.tolist() == correction
    assert scoring.responses[0] == [70, 71, 72, *encoder.text(INSTRUCTION), *prediction]
    text = encoder.decode(list(scoring.prompt))
    assert "2 + 3?" in text
    assert "The answer is 5" in text


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("unaligned", [1.0, 0.0, 0.0, 0.0]), ("one_minus", [0.8, 0.5, 0.1, 0.0]), ("legacy", [0.2, 0.5, 0.9, 0.0])],
)
def test_low_probability_is_forgotten_and_the_end_never_is(
    kind: Literal["unaligned", "one_minus", "legacy"], expected: list[float]
) -> None:
    ends = torch.tensor([False, False, False, True])
    weights = token_weights(torch.tensor([0.2, 0.5, 0.9, 0.01]), ends, ForgetConfig(weights=kind))
    assert weights.tolist() == pytest.approx(expected)
