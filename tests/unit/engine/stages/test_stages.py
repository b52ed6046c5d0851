"""The whole method on a tiny model, stage by stage, without a service; and what must hold of what it leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from allo_engine.checkpoints.delta import read_delta
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.config import EvaluateConfig, ForgetConfig, ImproveConfig, RewardModelConfig
from allo_engine.data.answers import Verdict, compare
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup, PairGroup, SampledProblem, ScoredGroup, ShownResponse, write_lines
from allo_engine.data.shown import SHOWN
from allo_engine.masking.selection import count_of, positions
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.sequences import singles
from allo_engine.pipeline import Data, plan
from allo_engine.report import Report, StageError
from allo_engine.source import ROOT, Source
from allo_engine.stages import evaluate, forget, improve, reward_model
from tests.unit.engine.conftest import Lines
from tests.unit.engine.loading import loaded_by
from tests.unit.engine.pipeline import THINGS, aligned_folder, run_job, whole_input, write_problems

SETTINGS: dict[str, Any] = {
    "sft": {"learning_rate": 1e-2, "n_epochs": 25, "batch_size": 4, "share": 1},
    "sample": {"n": 8, "temperature": 1.0, "max_response_tokens": 32},
    "warmup": {"learning_rate": 1e-4, "batch_size": 8},
    "locate": {"forget_ratio": 0.03, "improve_ratio": 0.1},
    "reward_model": {"learning_rate": 1e-3, "n_epochs": 2, "batch_size": 8},
    "forget": {"learning_rate": 1e-4, "batch_size": 8},
    "improve": {"learning_rate": 1e-3, "batch_size": 8},
    "evaluate": {"max_response_tokens": 32},
}


QUICK: dict[str, Any] = {stage: {"n_epochs": 1} if "n_epochs" in given else {} for stage, given in SETTINGS.items()} | {
    "sample": {"n": 2, "max_response_tokens": 4},
    "evaluate": {"max_response_tokens": 4},
}


def weights_of(root: Path, stage: str) -> dict[str, np.ndarray]:
    described = stage in ("forget", "improve")
    folder = aligned_folder(root, root / "sft" / "checkpoint", stage) if described else root / stage / "checkpoint"
    return load_file(folder / "model.safetensors")


class Job:
    def __init__(self, root: Path, metrics: dict[str, dict[str, float]], start: Path) -> None:
        self.root, self.metrics, self.start = root, metrics, start

    def weights(self, stage: str) -> dict[str, np.ndarray]:
        return weights_of(self.root, stage)

    def mask(self, use: str) -> dict[str, np.ndarray]:
        bits = load_file(self.root / "locate" / "masks" / f"{use}.safetensors")
        sizes = {name: weight.size for name, weight in self.weights("sft").items()}
        return {name: positions(packed, sizes[name]) for name, packed in bits.items()}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Job:
    root = tmp_path_factory.mktemp("job")
    data = write_problems(root / "data")
    given = {"model": model_folder, "training_file": data, "validation_file": data}
    metrics = run_job(root, "allo", Data("problems", validation="problems"), given, SETTINGS, Report(Lines()))
    return Job(root, metrics, model_folder)


def test_every_stage_left_what_the_next_one_needs(job: Job) -> None:
    assert list(job.metrics) == [
        "sft", "sample", "pair", "warmup", "locate", "reward_model", "token_rewards", "forget", "improve", "evaluate",
    ]  # fmt: skip
    assert job.metrics["pair"]["pairs"] > 0
    assert 0 < job.metrics["token_rewards"]["unaligned_share"] < 1


def test_a_stage_loads_no_more_of_the_engine_than_its_name_covers(job: Job, tmp_path: Path) -> None:
    data = job.root / "data"
    given = {"model": job.start, "training_file": data, "validation_file": data}
    for stage in plan("allo", Data("problems", validation="problems"), QUICK):
        inputs = {name: whole_input(source, job.root, given) for name, source in stage.inputs.items()}
        task = {"stage": stage.name, "config": stage.config.model_dump(mode="json")}
        task |= {"inputs": {name: str(folder) for name, folder in (inputs | {"cache": tmp_path / "cache"}).items()}}
        task |= {"outputs": str(tmp_path / stage.name), "work": str(tmp_path / "work" / stage.name)}
        path = tmp_path / f"{stage.name}.json"
        path.write_text(json.dumps(task))
        loaded = loaded_by(path)
        assert f"allo_engine.stages.{stage.name}" in loaded
        assert loaded <= Source(ROOT).closure(stage.name)


def test_masks_hold_exactly_their_share_and_are_nested(job: Job) -> None:
    total = sum(weight.size for weight in job.weights("sft").values())
    forget, improve = job.mask("forget"), job.mask("improve")
    assert sum(map(len, forget.values())) == count_of(0.03, total) == job.metrics["locate"]["forget_selected"]
    assert sum(map(len, improve.values())) == count_of(0.1, total)
    assert all(set(forget[name]) <= set(improve[name]) for name in forget)


def test_the_mask_is_where_the_warm_up_moved_most(job: Job) -> None:
    before, after = job.weights("sft"), job.weights("warmup")
    update = {name: np.abs(after[name] - before[name]).ravel() for name in before}
    inside = min(update[name][places].min() for name, places in job.mask("improve").items() if len(places))
    outside = max(np.delete(update[name], places).max(initial=0) for name, places in job.mask("improve").items())
    assert inside >= outside


def test_forgetting_and_improving_change_no_bit_outside_their_mask(job: Job) -> None:
    start, aligned = job.weights("sft"), job.weights("improve")
    mask = job.mask("improve")
    for name, weight in start.items():
        changed = np.flatnonzero(weight.ravel().view(np.int32) != aligned[name].ravel().view(np.int32))
        assert set(changed) <= set(mask[name])
    delta = read_delta(job.root / "forget" / "delta", job.root / "sft" / "checkpoint")
    for name, places in job.mask("forget").items():
        if len(places):
            assert np.array_equal(delta[name][0], places)


def test_the_sparse_checkpoint_holds_the_very_bits_of_the_aligned_model(job: Job) -> None:
    start, aligned = job.weights("sft"), job.weights("improve")
    delta = read_delta(job.root / "improve" / "delta", job.root / "sft" / "checkpoint")
    for name, weight in start.items():
        merged = weight.ravel().copy()
        if name in delta:
            merged[delta[name][0]] = delta[name][1]
        assert np.array_equal(merged.view(np.int32), aligned[name].ravel().view(np.int32))


def test_the_reference_log_probabilities_are_those_of_the_start_model(job: Job) -> None:
    model = AutoModelForCausalLM.from_pretrained(job.root / "sft" / "checkpoint")
    for group in ScoredGroup.read(job.root / "token_rewards" / "scores" / "scores.jsonl"):
        for ids, logps in zip(group.responses, group.reference_logps, strict=True):
            sequence = torch.tensor([group.prompt_ids + ids])
            expected = model(sequence).logits[0].float().log_softmax(-1)
            places = torch.arange(len(group.prompt_ids) - 1, sequence.shape[1] - 1)
            assert torch.allclose(expected[places, torch.tensor(ids)], torch.tensor(logps), atol=1e-5)


def test_a_few_scored_responses_are_left_for_people_to_read(job: Job) -> None:
    folder = job.root / "token_rewards" / "scores"
    shown, groups = ShownResponse.read(folder / "examples.jsonl"), ScoredGroup.read(folder / "scores.jsonl")
    encoder = Encoder.of(job.root / "sft" / "checkpoint")
    scored = [pair for group in groups for pair in zip(group.responses, group.probabilities, strict=True)]
    assert len(shown) == len(range(0, len(scored), -(-len(scored) // SHOWN))) <= SHOWN
    first, (ids, probabilities) = shown[0], scored[0]
    assert "".join(first.tokens) == encoder.tokenizer.decode(ids)
    assert first.probabilities == pytest.approx(probabilities, abs=1e-4)
    assert first.ends == [token in encoder.ends for token in ids]
    assert (first.problem in THINGS, first.length) == (True, len(ids))


def test_sampling_leaves_the_reference_that_later_stages_need(job: Job) -> None:
    start = fingerprint(job.root / "sft" / "checkpoint")
    sampled = SampledProblem.read(job.root / "sample" / "responses" / "responses.jsonl")
    groups = [singles(key, problem.prompt_ids, problem.responses) for key, problem in enumerate(sampled)]
    known = LogpCache(job.root / "cache", job.root, start, "float32").read(groups)
    assert set(known) == {(group.key, index) for group in groups for index in group.responses}
    kept = {
        (tuple(group.prompt), tuple(ids)): known[group.key, index].tolist()
        for group in groups
        for index, ids in group.responses.items()
    }
    for scored in ScoredGroup.read(job.root / "token_rewards" / "scores" / "scores.jsonl"):
        for ids, logps in zip(scored.responses, scored.reference_logps, strict=True):
            assert kept[tuple(scored.prompt_ids), tuple(ids)] == logps


def test_stages_share_the_ids_that_were_sampled(job: Job) -> None:
    sampled = SampledProblem.read(job.root / "sample" / "responses" / "responses.jsonl")
    known = {(tuple(p.prompt_ids), tuple(ids)) for p in sampled for ids in p.responses}
    for group in PairGroup.read(job.root / "pair" / "pairs" / "pairs.jsonl"):
        assert {(tuple(group.prompt_ids), tuple(ids)) for ids in group.responses} <= known
    for negative in NegativeGroup.read(job.root / "pair" / "negatives" / "negatives.jsonl"):
        assert {(tuple(negative.prompt_ids), tuple(ids)) for ids in negative.responses} <= known


def test_the_report_names_every_model_with_its_interval(job: Job) -> None:
    report = json.loads((job.root / "evaluate" / "report" / "report.json").read_text())
    assert [row["model"] for row in report["models"]] == ["base", "sft", "warmup", "forget", "improve"]
    for row in report["models"]:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert len(row["examples"]) == 2


def test_pass_at_k_is_of_the_very_responses_that_sampling_draws(job: Job, tmp_path: Path, report: Report) -> None:
    config = EvaluateConfig(samples=8, k=(1, 3), temperature=1.0, max_response_tokens=32)
    inputs = {"base": job.root / "sft" / "checkpoint", "heldout": job.root / "data"}
    evaluate.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    (row,) = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["models"]
    sampled = SampledProblem.read(job.root / "sample" / "responses" / "responses.jsonl")
    right = [sum(compare(text, str(problem.answer)) is Verdict.RIGHT for text in problem.texts) for problem in sampled]
    assert row["sampled_right"] == right
    assert 0 < sum(right) < 8 * len(right)
    assert row["pass_at_1"] == pytest.approx(sum(right) / (8 * len(right)))
    none_of_three = [math.comb(8 - one, 3) / math.comb(8, 3) for one in right]
    assert row["pass_at_3"] == pytest.approx(1 - sum(none_of_three) / len(right))


def test_the_same_job_gives_the_same_bits(job: Job, tmp_path: Path, model_folder: Path) -> None:
    data = job.root / "data"
    given = {"model": model_folder, "training_file": data, "validation_file": data}
    run_job(tmp_path, "allo", Data("problems", validation="problems"), given, SETTINGS, Report(Lines()))
    for stage in ("sft", "warmup", "reward_model", "improve"):
        ours, again = job.weights(stage), weights_of(tmp_path, stage)
        assert all(np.array_equal(ours[name], again[name]) for name in ours), stage


def test_training_never_writes_into_its_input_files(job: Job, model_folder: Path) -> None:
    from tests.tiny import tiny_model

    fresh = dict(tiny_model().named_parameters())
    stored = load_file(model_folder / "model.safetensors")
    assert all(np.array_equal(stored[name], fresh[name].detach().numpy()) for name in stored)


def preferences(folder: Path, solutions: bool) -> Path:
    folder.mkdir(parents=True)
    lines = [
        {"prompt": f"say {word}", "chosen": word, "rejected": "no", **({"solution": word} if solutions else {})}
        for word in ("red", "blue", "green")
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("source", ["reward_model", "log_ratio"])
def test_preferences_are_aligned_without_sampling(
    tmp_path: Path, model_folder: Path, report: Report, source: str
) -> None:
    data = preferences(tmp_path / "data", solutions=source == "reward_model")
    stages = {
        "warmup": {"learning_rate": 1e-3},
        "token_rewards": {"source": source},
        "forget": {"learning_rate": 1e-3},
        "improve": {"learning_rate": 1e-2, "filter_ratio": 1.0, "n_epochs": 5},
    }
    given = {"model": model_folder, "training_file": data, "validation_file": data}
    metrics = run_job(tmp_path / "job", "allo", Data("preferences", validation="preferences"), given, stages, report)
    assert "sample" not in metrics
    assert metrics["improve"]["pairs"] == 3
    assert metrics["evaluate"]["base_accuracy"] == pytest.approx(0.5)  # the start model prefers nothing to itself
    assert metrics["evaluate"]["improve_accuracy"] > 0.5


def test_a_job_that_forgets_nothing_improves_the_start_model_in_a_random_mask(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    data = preferences(tmp_path / "data", solutions=False)
    stages: dict[str, Any] = {
        "forget": None,
        "locate": {"importance": "random", "improve_ratio": 0.1},
        "improve": {"learning_rate": 1e-2, "filter_ratio": 1.0, "n_epochs": 5, "nll": 0.1, "dpop": 1.0},
    }
    given = {"model": model_folder, "training_file": data, "validation_file": data}
    metrics = run_job(tmp_path / "job", "allo", Data("preferences", validation="preferences"), given, stages, report)
    assert list(metrics) == ["locate", "improve", "evaluate"]
    changed = read_delta(tmp_path / "job" / "improve" / "delta", model_folder)
    total = sum(weight.size for weight in load_file(model_folder / "model.safetensors").values())
    assert sum(len(places) for places, _ in changed.values()) == count_of(0.1, total)
    assert metrics["evaluate"]["base_accuracy"] == pytest.approx(0.5)
    assert metrics["evaluate"]["improve_accuracy"] > 0.5

    config = ImproveConfig(**stages["improve"], scale=0.5)
    masks = tmp_path / "job" / "locate" / "masks"
    inputs = {"model": model_folder, "pairs": data, "masks": masks}
    improve.run(config, inputs, tmp_path / "half", tmp_path / "half.work", report)
    start = {name: weight.ravel() for name, weight in load_file(model_folder / "model.safetensors").items()}
    for name, (places, values) in read_delta(tmp_path / "half" / "delta", model_folder).items():
        assert np.array_equal(changed[name][0], places)
        between = start[name][places] + np.float32(0.5) * (changed[name][1] - start[name][places])
        assert np.array_equal(values, between)


def test_chats_are_fine_tuned_and_evaluated(tmp_path: Path, model_folder: Path, report: Report) -> None:
    (tmp_path / "data").mkdir()
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    turns = [*chat, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you"}]
    (tmp_path / "data" / "data.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    given = {"model": model_folder, "training_file": tmp_path / "data", "validation_file": tmp_path / "data"}
    stages = {"sft": {"learning_rate": 1e-2, "n_epochs": 10}}
    metrics = run_job(tmp_path / "job", "supervised", Data("chats", validation="chats"), given, stages, report)
    assert metrics["sft"]["examples"] == 2
    assert metrics["evaluate"]["sft_cross_entropy"] < metrics["evaluate"]["base_cross_entropy"]


def test_a_model_that_answers_nothing_right_ends_in_what_to_change(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    data = write_problems(tmp_path / "data")
    stages = {"sample": {"n": 2, "max_response_tokens": 8}}
    with pytest.raises(StageError) as caught:
        run_job(
            tmp_path / "job", "dpo", Data("problems"), {"model": model_folder, "training_file": data}, stages, report
        )
    assert caught.value.code == "no_right_answers"
    assert "sft" in caught.value.message


def test_prompts_that_are_all_too_long_end_in_what_to_change(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    data = write_problems(tmp_path / "data")
    given = {"model": model_folder, "training_file": data}
    with pytest.raises(StageError, match="max_prompt_tokens"):
        run_job(tmp_path / "job", "supervised", Data("problems"), given, {"sft": {"max_prompt_tokens": 1}}, report)


def test_examples_longer_than_the_model_are_dropped_and_told(
    tmp_path: Path, model_folder: Path, report: Report, stream: Lines
) -> None:
    data = write_problems(tmp_path / "data")
    with (data / "data.jsonl").open("a") as file:
        file.write(json.dumps({"problem": "x" * 600, "solution": "too long for a model of 512 tokens"}) + "\n")
    given = {"model": model_folder, "training_file": data}
    metrics = run_job(tmp_path / "job", "supervised", Data("problems"), given, {"sft": {"n_epochs": 1}}, report)
    assert metrics["sft"]["examples"] == 8
    assert any("1 of 9 examples are too long" in line.get("message", "") for line in stream.lines())


def test_the_reward_model_learns_from_as_many_problems_as_asked(job: Job, tmp_path: Path, report: Report) -> None:
    inputs = {"model": job.root / "sft" / "checkpoint", "negatives": job.root / "pair" / "negatives"}
    config = RewardModelConfig(max_problems=2, max_negatives=1, n_epochs=1)
    metrics = reward_model.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    assert metrics["examples"] == 2


def test_where_no_token_is_unaligned_nothing_is_forgotten_and_that_is_told(
    job: Job, tmp_path: Path, report: Report, stream: Lines
) -> None:
    kept = ScoredGroup([5, 6], [[7, 8, 1]], [[0.9, 0.8, 0.1]], [[-1.0, -1.0, -1.0]])  # the end is never forgotten
    write_lines(tmp_path / "scores" / "scores.jsonl", [kept])
    start = job.root / "sft" / "checkpoint"
    inputs = {"model": start, "scores": tmp_path / "scores", "masks": job.root / "locate" / "masks"}
    metrics = forget.run(ForgetConfig(), inputs, tmp_path / "out", tmp_path / "work", report)
    assert (metrics["forgotten_share"], metrics["trained_weights"]) == (0, 0)
    assert any("nothing was forgotten" in line.get("message", "") for line in stream.lines())
    weights = job.weights("sft")
    for name, (places, values) in read_delta(tmp_path / "out" / "delta", start).items():
        assert np.array_equal(weights[name].ravel()[places], values)


@pytest.mark.parametrize("loss", ["npo", "simnpo"])
def test_forgetting_lowers_the_unaligned_tokens(job: Job, tmp_path: Path, report: Report, loss: str) -> None:
    inputs = {
        "model": job.root / "sft" / "checkpoint",
        "scores": job.root / "token_rewards" / "scores",
        "masks": job.root / "locate" / "masks",
    }
    config = ForgetConfig(loss=loss, learning_rate=1e-3, n_epochs=8, batch_size=4, weights="one_minus")  # type: ignore[arg-type]
    first = forget.run(config.model_copy(update={"n_epochs": 1}), inputs, tmp_path / "1", tmp_path / "w1", report)
    last = forget.run(config, inputs, tmp_path / "2", tmp_path / "w2", report)
    name = "forgotten_log_ratio" if loss == "npo" else "forgotten_logp"
    assert last[name] < first[name]
    assert last["loss"] < first["loss"]
