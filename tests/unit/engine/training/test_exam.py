"""The best checkpoint by accuracy: the very share that `evaluate` finds, and a training that is none the wiser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from allo_engine.config import EvaluateConfig, ImproveConfig, LocateConfig, SftConfig, WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED
from allo_engine.data.records import PairGroup, read_lines, write_lines
from allo_engine.model.sequences import singles
from allo_engine.pipeline import Data, PlanError, plan
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import evaluate, improve, locate, sft, warmup
from allo_engine.training.exam import Exam, measure_of
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.resuming import OptimizerState
from allo_engine.training.validation import Measure, Validation, held_out
from tests.unit.engine.pipeline import THINGS
from tests.unit.engine.training.test_validation import Watching, groups_of, same, tuned

LEARNED: dict[str, Any] = {"learning_rate": 5e-3, "n_epochs": 12, "batch_size": 4, "evaluate_every": 0.5}
"""Under which the tiny model comes to name colours, if not the right ones."""

ASKED: dict[str, Any] = {**LEARNED, "validation_share": 0.4, "best_by": "accuracy"}


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen problems whose answers are all but two the same, so that what is held out can be learned."""
    folder = tmp_path_factory.mktemp("coloured")
    lines = [
        {"problem": f"{size} {thing}", "solution": f"The answer is {'red' if number % 8 else 'blue'}"}
        for size in ("a", "no")
        for number, thing in enumerate(THINGS)
    ]
    (folder / UPLOADED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_of_equal_accuracies_the_loss_decides_and_a_loss_that_is_no_number_counts_for_nothing(
    tmp_path: Path, report: Report
) -> None:
    """(accuracy, loss) behind each step; step 4 is the best: step 3 is as accurate with a greater loss, 5 has none."""
    course = [(0.5, 1.0), (0.25, 0.1), (0.75, 2.0), (0.75, 1.5), (1.0, float("nan")), (0.5, 0.2)]
    losses: Iterator[float] = iter([loss for _, loss in course])
    shares: Iterator[float] = iter([share for share, _ in course])
    weight = torch.nn.Parameter(torch.zeros(1))
    state = OptimizerState({"weight": weight}, torch.optim.AdamW([weight]))
    config = SftConfig(validation_share=0.5, n_epochs=6, evaluate_every=1, patience=2)
    scored = lambda: {(0, 0): torch.tensor([-next(losses)])}  # noqa: E731
    measure = Measure("accuracy", lambda: next(shares))
    held = [singles(0, [1], [[2]])]
    found = Validation(held, CrossEntropy(), scored, config, 6, state, tmp_path, report, measure)
    better = []
    for step in range(1, 7):
        weight.data.fill_(step)
        figures, is_better = found.take(step)
        assert figures["validation_accuracy"] == course[step - 1][0]
        better.append(is_better)
    assert better == [True, False, True, True, False, False]
    assert found.over
    told = found.settle(6)
    assert told == {
        "result_step": 4,
        "best_step": 4,
        "best_validation_loss": pytest.approx(1.5),
        "best_validation_accuracy": 0.75,
    }
    assert weight.item() == 4


@pytest.mark.parametrize("train", ["all", "mask"])
def test_the_accuracy_is_what_evaluate_finds_of_the_result_on_what_was_held_out(
    tmp_path: Path, model_folder: Path, coloured: Path, train: str
) -> None:
    report = Watching()
    settings = {**ASKED, "train": train, "mask_ratio": 0.5}
    metrics = tuned(tmp_path / "out", model_folder, coloured, report, **settings)
    told = report.told("validation_accuracy")
    assert len(set(told.values())) > 1, "the settings are such that accuracy moves"
    assert told[int(metrics["best_step"])] == max(told.values()) == metrics["best_validation_accuracy"]
    assert metrics["result_step"] == metrics["best_step"]
    assert "% on held-out items is the highest" in report.stream.getvalue()
    _, held = held_out(groups_of(coloured, model_folder), SftConfig(**settings))
    prompts = {tuple(group.prompt) for group in held}
    encoder = Encoder.of(model_folder)
    (tmp_path / "held").mkdir()
    with (tmp_path / "held" / UPLOADED).open("w") as stream:
        for line in read_lines(coloured / UPLOADED):
            if tuple(encoder.prompt(line["problem"])) in prompts:
                stream.write(json.dumps(line) + "\n")
    inputs = {"base": tmp_path / "out" / "checkpoint", "heldout": tmp_path / "held"}
    config = EvaluateConfig(max_response_tokens=64)
    evaluated = evaluate.run(config, inputs, tmp_path / "report", tmp_path / "work", Report(report.stream))
    assert evaluated["base_problems"] == len(held)
    assert evaluated["base_accuracy"] == pytest.approx(metrics["best_validation_accuracy"])


@pytest.mark.parametrize("twice", [False, True])
def test_who_is_asked_trains_as_who_is_not(tmp_path: Path, model_folder: Path, coloured: Path, twice: bool) -> None:
    settings = {**ASKED, "keep": "last", "gradient_checkpointing": twice, "n_epochs": 2}
    tuned(tmp_path / "asked", model_folder, coloured, Watching(), **settings)
    tuned(tmp_path / "silent", model_folder, coloured, Watching(), **settings | {"best_by": "loss"})
    assert same(tmp_path / "asked", tmp_path / "silent")


def test_a_run_that_was_cut_has_the_same_best_by_accuracy(tmp_path: Path, model_folder: Path, coloured: Path) -> None:
    settings = {**ASKED, "patience": 6, "average": 2}
    whole = tuned(tmp_path / "whole", model_folder, coloured, Watching(), **settings)
    with pytest.raises(Stopped):
        tuned(tmp_path / "cut", model_folder, coloured, Watching(9), **settings)
    assert tuned(tmp_path / "cut", model_folder, coloured, Watching(), **settings) == whole
    assert "average_validation_accuracy" in whole
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_a_stop_is_heard_in_the_midst_of_an_answer(tmp_path: Path, model_folder: Path, coloured: Path) -> None:
    config = SftConfig(**ASKED)
    _, held = held_out(groups_of(coloured, model_folder), config)
    report = Watching()
    report.stop_requested = True
    trained = sft.trained(model_folder, config, report, tmp_path, lambda *_: {})  # type: ignore[arg-type]
    exam = Exam(config, held, model_folder, trained.trainer.model, report, tmp_path)
    before = trained.trainer.model.config._attn_implementation
    with pytest.raises(Stopped):
        exam.taken()
    assert trained.trainer.model.config._attn_implementation == before


@pytest.fixture
def verified(tmp_path: Path, model_folder: Path) -> dict[str, Path]:
    """What `pair` leaves of problems: the chosen response is right. And a random mask to train in."""
    encoder = Encoder.of(model_folder)
    groups = [
        PairGroup(
            encoder.prompt(f"{size} {thing}"),
            [encoder.response(f"The answer is {colour}") for colour in ("red", "blue")],
            [(0, 1)],
        )
        for size in ("a", "no", "one")
        for thing in THINGS
    ]
    write_lines(tmp_path / "pairs" / "pairs.jsonl", groups)
    chosen = LocateConfig(importance="random", improve_ratio=1.0)
    locate.run(chosen, {"model": model_folder}, tmp_path / "locate", tmp_path / "locate.work", Watching())
    return {"model": model_folder, "pairs": tmp_path / "pairs", "masks": tmp_path / "locate" / "masks"}


def test_pairs_of_verified_answers_are_asked_and_so_is_each_scale(tmp_path: Path, verified: dict[str, Path]) -> None:
    settings = {**ASKED, "nll": 20.0, "scales": (0.0, 1.0)}
    report = Watching()
    metrics = improve.run(ImproveConfig(**settings), verified, tmp_path / "out", tmp_path / "work", report)
    told = report.told("validation_accuracy")
    assert metrics["best_validation_accuracy"] == max(told.values()) > 0
    assert metrics["validation_accuracy_at_0"] == 0, "with scale 0 the model is the one that improving started from"
    assert metrics["validation_accuracy_at_1"] == metrics["best_validation_accuracy"]
    assert metrics["scale"] == 1


def test_of_pairs_that_people_gave_the_implicit_rewards_accuracy_decides(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "pairs").mkdir()
    lines = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(10)]
    (tmp_path / "pairs" / UPLOADED).write_text("\n".join(map(json.dumps, lines)))
    config = WarmupConfig(learning_rate=1e-3, batch_size=2, validation_share=0.4, best_by="accuracy")
    inputs = {"model": model_folder, "pairs": tmp_path / "pairs"}
    report = Watching()
    metrics = warmup.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    told = report.told("validation_reward_accuracy")
    assert metrics["best_validation_reward_accuracy"] == max(told.values())
    assert "accuracy" not in metrics


def test_where_no_answer_is_stated_it_says_so(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "mute").mkdir()
    lines = [{"problem": f"{n}?", "solution": "who knows why"} for n in range(9)]
    (tmp_path / "mute" / UPLOADED).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(StageError, match="has a response that states its answer: set best_by to 'loss'"):
        tuned(tmp_path / "out", model_folder, tmp_path / "mute", Watching(), **ASKED)


def test_a_model_that_devices_share_out_is_asked_nothing(tmp_path: Path, model_folder: Path, coloured: Path) -> None:
    config = SftConfig(**ASKED)
    _, held = held_out(groups_of(coloured, model_folder), config)
    trained = sft.trained(model_folder, config, Watching(), tmp_path, lambda *_: {})  # type: ignore[arg-type]
    trained.trainer.is_whole = False
    with pytest.raises(StageError, match="Devices share out the model"):
        measure_of(config, held, model_folder, trained.trainer, Watching(), tmp_path)


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        ("chats", {"best_by": "accuracy", "validation_share": 0.1}, "no answers of chats are known"),
        ("problems", {"best_by": "accuracy", "zero": 3}, "set best_by to 'loss', or zero to 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_runs(data: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan("supervised", Data(data), {"sft": settings})
