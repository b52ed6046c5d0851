from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from allo_engine.config import WarmupConfig
from allo_engine.data.records import Problem
from allo_engine.estimate.__main__ import duration, main
from allo_engine.estimate.costs import SERVING_SECONDS, TRL_BYTES, TRL_SECONDS, disk_bytes, peak_bytes, seconds
from allo_engine.estimate.count import count
from allo_engine.estimate.counting import decoding, padded_passes, passes
from allo_engine.estimate.excerpt import LINES, excerpt_of
from allo_engine.estimate.job import Job
from allo_engine.estimate.loads import Decoding, Load, Passes, Place
from allo_engine.estimate.price import Estimate, StageEstimate, price
from allo_engine.estimate.priors import EXPECTED, Priors, answered, stretched
from allo_engine.model.loading import load_model
from allo_engine.model.sequences import Group, singles
from allo_engine.model.shape import Shape, shape_of
from allo_engine.pipeline import Data, Method, PlanError
from allo_engine.report import Report, StageError
from allo_engine.rounds import kind_of
from allo_engine.sampling import Request, Settings, TransformersSampler
from tests.offers import RATES
from tests.tiny import tiny_model
from tests.unit.engine.pipeline import run_job, write_problems

CPU = Place("cpu", 2**34)
"""Not this machine as it is now: what is free changes with whatever runs beside the tests."""

SHORT = {"sample": {"n": 4, "max_response_tokens": 40}, "evaluate": {"max_response_tokens": 40}}


def estimate(job: Job) -> Estimate:
    (work,) = count(job, [CPU])
    return price(work, RATES)


def _job(method: Method, model: Path, root: Path, stages: dict[str, Any], validated: bool = True) -> Job:
    files = {"training_file": write_problems(root / "train")}
    if validated:
        files["validation_file"] = write_problems(root / "heldout", 4)
    return Job(method, model, files, stages, {"batch_size": 4, "n_epochs": 1})


@pytest.mark.parametrize(
    ("method", "stages", "names"),
    [
        ("supervised", {}, "sft evaluate"),
        ("dpo", SHORT, "sample pair warmup evaluate"),
        (
            "allo",
            {"sft": {}, **SHORT},
            "sft sample pair warmup locate reward_model token_rewards forget improve evaluate",
        ),
        (
            "allo",
            {**SHORT, "locate": {"importance": "gradient"}},
            "sample pair locate reward_model token_rewards forget improve evaluate",
        ),
        (
            "allo",
            {**SHORT, "locate": {"importance": "random"}, "forget": None},
            "sample pair locate improve evaluate",
        ),
        (
            "allo",
            {"sample": {**SHORT["sample"], "rounds": 2}, "locate": {"later_rounds": "fresh"}, "forget": None},
            "sample pair warmup locate improve sample-2 pair-2 warmup-2 locate-2 improve-2 evaluate",
        ),
    ],
)
def test_every_planned_stage_is_estimated_with_figures_above_zero(
    model_folder: Path, tmp_path: Path, method: Method, stages: dict[str, Any], names: str
) -> None:
    found = estimate(_job(method, model_folder, tmp_path, stages))
    assert [stage.name for stage in found.stages] == names.split()
    for stage in [*found.stages, found.total()]:
        assert 0 < stage.seconds.low <= stage.seconds.expected <= stage.seconds.high
        assert stage.peak_memory_bytes > 0
        assert stage.disk_bytes >= 0
        assert stage.work_bytes >= stage.disk_bytes
        assert stage.tokens > 0 or kind_of(stage.name) in ("pair", "locate")


@pytest.mark.parametrize("method", ["dpo", "allo"])
def test_a_file_of_preferences_is_estimated_without_any_simulation(
    model_folder: Path, tmp_path: Path, method: Method
) -> None:
    line = {"prompt": "2+2", "chosen": "four", "rejected": "five or so", "solution": "four"}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line) + "\n")
    job = Job(method, model_folder, {"training_file": path, "validation_file": path}, {}, {"template": "{problem}="})
    found = {stage.name: stage for stage in estimate(job).stages}
    tree = len("2+2=") + len("four") + len("five or so") - 1  # the prompt and the f of both responses stand once
    assert found["warmup"].tokens == 2 * tree  # the reference, and one epoch
    models = 2 if method == "dpo" else 4
    assert found["evaluate"].tokens == (1 + models) * tree


def test_samples_and_options_of_the_evaluation_are_estimated(model_folder: Path, tmp_path: Path) -> None:
    line = {"problem": "red?\nOptions:\nblood\nsnow", "solution": "blood", "answer": "blood"}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line) + "\n")

    def tokens(**settings: Any) -> int:
        given = {"max_response_tokens": 40, "template": "{problem}:", "micro_batch_tokens": 1024, **settings}
        job = Job(
            "supervised", model_folder, dict.fromkeys(("training_file", "validation_file"), path), {"evaluate": given}
        )
        return estimate(job).stages[-1].tokens

    plain, read = tokens(options=False), 2 * len("red?\nOptions:\nblood\nsnow:The answer is blood snow")
    assert tokens() - plain == pytest.approx(read, abs=8), "two models read the problem once, with both options"
    answers = tokens(options=False, samples=4) - plain
    assert answers > 4 * 40, "the base model does not end"


def test_a_retention_file_is_read_by_two_models(model_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "say x", "chosen": "x y z", "rejected": "x y"}) + "\n")
    job = _job("dpo", model_folder, tmp_path, {"evaluate": {**SHORT["evaluate"], "template": "{problem}"}})
    plain, found = (
        estimate(replace(job, files=files)).stages[-1].tokens
        for files in (job.files, {**job.files, "retention_file": pairs})
    )
    assert found - plain == pytest.approx(3 * len("say x" + "x y z"), abs=6), "the reference reads it, too"


def test_tokens_are_those_that_the_stages_count(model_folder: Path, tmp_path: Path, report: Report) -> None:
    """The tiny model's rows cannot share more than the token that begins a sequence."""
    stages: dict[str, Any] = {"sft": {"n_epochs": 2, "batch_size": 4, "template": "{problem}:"}}
    job = _job("supervised", model_folder, tmp_path, stages, validated=False)
    given = {"model": model_folder, "training_file": job.files["training_file"]}
    metrics = run_job(tmp_path / "run", "supervised", Data("problems"), given, stages, report)["sft"]
    (stage,) = estimate(job).stages
    assert 0 <= metrics["trained_tokens"] - stage.tokens < 2 * 8


def test_a_file_that_sft_and_sampling_share_is_counted_once(model_folder: Path, tmp_path: Path) -> None:
    def of(name: str, **shares: float) -> dict[str, StageEstimate]:
        stages = {"sft": {"n_epochs": 1, **shares}, "sample": SHORT["sample"]}
        files = {"training_file": write_problems(tmp_path / name)}
        return {stage.name: stage for stage in estimate(Job("dpo", model_folder, files, stages)).stages}

    whole, shared = of("whole", share=1), of("shared")
    for stage in ("sft", "sample"):
        assert 0 < shared[stage].tokens < whole[stage].tokens
    with pytest.raises(StageError, match="No problem is left"):
        of("none", share=0.9999)


def test_what_is_held_out_is_counted_as_often_as_it_is_looked_at(model_folder: Path, tmp_path: Path) -> None:
    """Of one batch an epoch, once an epoch, however often it is asked for."""

    def sft(name: str, **settings: Any) -> StageEstimate:
        stages = {"sft": {"n_epochs": 3, "batch_size": 8, **settings}}
        job = Job("supervised", model_folder, {"training_file": write_problems(tmp_path / name)}, stages)
        return estimate(job).stages[0]

    plain, often = sft("plain"), sft("often", validation_share=0.5, evaluate_every=0.1)
    assert sft("once", validation_share=0.5, evaluate_every=1).tokens == often.tokens
    assert plain.tokens < often.tokens < 4 / 3 * plain.tokens  # what is held out is looked at once more, beforehand
    assert often.work_bytes > plain.work_bytes
    assert (
        sft("mean", average=3, evaluate_every=1).work_bytes == plain.work_bytes + 3 * 4 * shape_of(model_folder).weights
    )


def test_each_scale_that_is_tried_is_one_more_look_at_what_is_held_out(model_folder: Path, tmp_path: Path) -> None:
    def looked(name: str, **settings: Any) -> float:
        improve = {"validation_share": 0.5, "evaluate_every": 1, **settings}
        (work,) = count(_job("allo", model_folder, tmp_path / name, {**SHORT, "improve": improve}), [CPU])
        held, *_ = next(views[0] for views in work.views if views[0].stage == "improve").forward
        return held.tokens

    none, two, three = looked("none"), looked("two", scales=[0.5, 1]), looked("three", scales=[0.5, 1, 2])
    assert three - two == pytest.approx((two - none) / 2)
    assert two > none > 0


def test_held_out_problems_are_answered_as_often_as_they_are_looked_at(model_folder: Path, tmp_path: Path) -> None:
    """Each time as many tokens as the right responses have; the loss alone decodes nothing."""

    def decoded(name: str, stage: str, **settings: Any) -> tuple[float, float]:
        """Tokens that are answered, and those that are scored."""
        job = _job("allo", model_folder, tmp_path / name, {**SHORT, stage: {"validation_share": 0.5, **settings}})
        (work,) = count(job, [CPU])
        load = next(views[0] for views in work.views if views[0].stage == stage)
        return load.decoding.decoded, load.forward[0].tokens

    for stage in ("warmup", "improve"):
        answered, scored = decoded(f"{stage}-once", stage, best_by="accuracy")
        again, scored_again = decoded(f"{stage}-twice", stage, best_by="accuracy", average=2, n_epochs=2)
        assert 0 < answered < again
        assert again / answered == pytest.approx(scored_again / scored)
        assert decoded(f"{stage}-loss", stage) == (0, scored)


def test_pairs_outside_the_pass_rate_are_not_counted(model_folder: Path, tmp_path: Path) -> None:
    def pairs(name: str, rates: tuple[float, float]) -> int:
        stages = {"sample": SHORT["sample"], "pair": {"pass_rate": rates}}
        found = estimate(_job("dpo", model_folder, tmp_path / name, stages, False)).stages
        return next(stage.tokens for stage in found if stage.name == "warmup")

    assert pairs("some", (0.4, 0.6)) < pairs("all", (0.0, 1.0))


def test_the_start_models_log_probabilities_are_known_where_nothing_is_forgotten(
    model_folder: Path, tmp_path: Path
) -> None:
    def improve(name: str, **stages: Any) -> int:
        settings = {"sample": SHORT["sample"], "locate": {"importance": "random"}, **stages}
        found = estimate(_job("allo", model_folder, tmp_path / name, settings, False)).stages
        return next(stage.tokens for stage in found if stage.name == "improve")

    assert improve("without", forget=None) < improve("with")


def test_a_later_round_takes_what_the_first_took(model_folder: Path, tmp_path: Path) -> None:
    twice = {**SHORT, "sample": {**SHORT["sample"], "rounds": 2}}
    (work,) = count(_job("dpo", model_folder, tmp_path, twice), [CPU])
    loads = {views[0].stage: views[0] for views in work.views}
    for kind in ("sample", "pair", "warmup"):
        assert replace(loads[f"{kind}-2"], stage=kind) == loads[kind]
    (once,) = count(_job("dpo", model_folder, tmp_path / "once", SHORT), [CPU])
    evaluated = once.views[-1][0]
    assert loads["evaluate"].models == evaluated.models + 1


def test_masks_of_each_round_add_up_in_what_is_left(model_folder: Path, tmp_path: Path) -> None:
    stages = {**SHORT, "sample": {**SHORT["sample"], "rounds": 2}, "forget": None}
    for later, masks in (("same", 1), ("fresh", 2)):
        locate = {"importance": "random", "later_rounds": later}
        (work,) = count(_job("allo", model_folder, tmp_path / later, {**stages, "locate": locate}), [CPU])
        loads = {views[0].stage: views[0] for views in work.views}
        assert (loads["improve"].deltas, loads["improve-2"].deltas) == (1, masks)


def test_rows_are_counted_as_they_are_packed() -> None:
    """Prompts of 3 and 2 tokens; responses that share their first token, and whose last token is never read."""
    first = singles(0, [1, 2, 3], [[4, 5, 6], [4, 7]])  # a tree of 1 2 3 4 5
    second = Group(1, [8, 9], {0: [4, 4]}, [(0,)])  # 8 9 4
    found = passes([[first], [second]])
    assert found == Passes(tokens=5 + 3, attended=25 + 9, scored=(4 - 0) + 2, rows=2, longest=5)
    together = passes([[first, second]])
    assert (together.tokens, together.attended, together.rows) == (8, 64, 1)


def test_by_trl_sequences_are_padded_to_the_longest_of_their_pass() -> None:
    """Pairs of (3 + 1, 3 + 2) and (4 + 2, 4 + 3) tokens, together: 4 sequences of 7."""
    groups = [Group(0, [0] * 3, {0: [1], 1: [1] * 2}, [(0, 1)]), Group(1, [0] * 4, {0: [1] * 2, 1: [1] * 3}, [(0, 1)])]
    config = WarmupConfig(trainer="trl", batch_size=2)
    assert padded_passes(groups, config, 100, "cpu") == (Passes(28, 28 * 7, 28, 1, 28), 1)
    assert padded_passes(groups, config, 100, "cuda") == (Passes(28, 28 * 7, 8, 1, 28), 1)
    apart = Passes(10 + 14, 10 * 5 + 14 * 7, 24, 2, 14)
    assert padded_passes(groups, config, 14, "cpu") == (apart, 1), "where two do not fit"


def test_to_train_by_trl_takes_its_import_and_its_padding(model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer": "trl"}
    by_trl, own = (
        estimate(_job("supervised", model_folder, tmp_path / name, {"sft": asked}, False)).stages[0]
        for name, asked in (("trl", settings), ("own", {}))
    )
    assert by_trl.tokens > own.tokens
    assert by_trl.seconds.expected > own.seconds.expected + 0.9 * TRL_SECONDS
    assert by_trl.peak_memory_bytes > own.peak_memory_bytes + 0.9 * TRL_BYTES


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 12)), min_size=1, max_size=6), st.integers(1, 4))
def test_doubling_rows_doubles_all_counts_but_the_longest(groups: list[tuple[int, int]], factor: int) -> None:
    rows = [[singles(0, list(range(prompt)), [list(range(100, 100 + response))])] for prompt, response in groups]
    assert passes(rows * factor) == passes(rows).times(factor)


def test_decoding_is_counted_as_it_is_done(model_folder: Path) -> None:
    """Counted by a hook on the model: rows of each step, and prompts as they are padded. Nuclei are small here: a row
    whose nucleus grows beyond the few candidates takes a step more, which is not counted."""
    model = load_model(model_folder)
    sampler = TransformersSampler(model)
    shapes: list[torch.Size] = []
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    plan = Settings(tuple(range(20)), temperature=0.7, top_p=0.5, rows=8)
    random = Random(3)
    requests = [Request(n, [random.randrange(5, 261) for _ in range(3 + n % 5)], 0, 24, range(2)) for n in range(10)]
    found = {(number, sample): len(response.ids) for number, sample, response in sampler.sample(requests, plan)}
    lengths = [[found[request.number, sample] for sample in range(2)] for request in requests]
    work = decoding([len(request.prompt) for request in requests], lengths, 8)
    assert work.prompts.tokens == sum(shape.numel() for shape in shapes if shape[1] > 1)
    steps = [shape for shape in shapes if shape[1] == 1]
    assert (work.steps, work.row_steps) == (len(steps), sum(shape[0] for shape in steps))
    assert work.decoded == sum(map(sum, lengths))


def test_of_four_answers_both_verdicts_are_expected_for_45_percent_of_problems() -> None:
    """Jeffreys' prior by hand: 1 − 2·B(4½, ½)/B(½, ½) = 1 − 2·(½·3/2·5/2·7/2)/4! = 1 − 2·35/128."""
    random = Random(0)
    problem, own, others = Problem("", ""), [1, 2], [[3, 2], [4, 2]]
    drawn = [answered(problem, [0], own, others, 4, 10, EXPECTED, random) for _ in range(4000)]
    mixed = sum(bool(answer.right and answer.wrong) for answer in drawn) / len(drawn)
    assert mixed == pytest.approx(1 - 2 * 35 / 128, abs=0.025)


def test_a_response_without_room_for_its_end_is_neither_right_nor_wrong() -> None:
    found = answered(Problem("", ""), [0], [1, 2, 3, 4], [[5, 6, 7, 4]], 6, 3, EXPECTED, Random(0))
    assert (found.right, found.wrong, found.lengths) == ([], [], [3] * 6)


def test_one_model_repeats_all_and_another_nothing() -> None:
    own, others = list(range(20)), [list(range(20 + n, 40 + n)) for n in range(500)]
    always, never = Priors(repeats=1.0), Priors(repeats=0.0)
    same = answered(Problem("", ""), [0], own, others, 30, 99, always, Random(1))
    distinct = answered(Problem("", ""), [0], own, others, 30, 99, never, Random(1))
    assert len(same.right) + len(same.wrong) <= 2
    assert len(distinct.right) + len(distinct.wrong) >= 28


@given(st.lists(st.integers(), min_size=1, max_size=20), st.floats(0.1, 4))
def test_a_stretched_response_keeps_its_end(ids: list[int], factor: float) -> None:
    found = stretched(ids, factor)
    assert found[-1] == ids[-1]
    assert len(found) == max(1, round(len(ids) * factor))
    assert stretched(ids, 1.0) == ids


def test_an_excerpt_of_a_long_file_keeps_its_order_and_knows_its_size(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"problem": {n}}}\n' for n in range(2 * LINES)) + "\n\n")
    found = excerpt_of(path, tmp_path / "excerpt", seed=1)
    numbers = [json.loads(line)["problem"] for line in (found.folder / "data.jsonl").read_text().splitlines()]
    assert (len(numbers), found.scale, found.format) == (LINES, 2.0, "problems")
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > LINES


def test_seconds_by_hand() -> None:
    """A row of 1,000 tokens through 10⁹ weights: three passes of two operations a weight, at 10¹¹ a second."""
    shape = _shape()
    training = Passes(tokens=1000, attended=0, scored=0, rows=1, longest=1000)
    idle = seconds(Load("sft", "dense", models=0), shape, RATES)
    body = 10**9 - 10**6
    one_step = seconds(Load("sft", "dense", training=training, updates=1, models=0), shape, RATES)
    assert one_step - idle == pytest.approx(3 * 2 * body * 1000 / 1e11 + 3 * 2 * 1e-3 + 1e9 / 1e9)
    eight = seconds(Load("sft", "dense", training=training.times(8), updates=8, models=0), shape, RATES)
    # a checkpoint for resuming is 12 bytes a weight, written and hashed: 24 s, so one is made every 480 s
    assert eight - idle == pytest.approx(8 * (one_step - idle) + 12 * (1 + 1))


def test_a_teachers_answers_take_a_second_and_their_tokens() -> None:
    """Ten questions one after another, and 500 tokens in them: 10·1 s + 500 / 50 s."""
    shape = _shape()
    idle = seconds(Load("reward_model", models=0), shape, RATES)
    assert seconds(Load("reward_model", models=0, asked=10, written=500), shape, RATES) - idle == pytest.approx(20)


def test_vllm_takes_its_start_and_a_process_of_its_own_beside_the_weights() -> None:
    """Two models; the cache of two rows of 100 tokens and one more, each of 128 with 4 · 2 · 2 · 1000 bytes a token."""
    shape, work = _shape(), Decoding(rows=2, length=100)
    ours, vllm = (Load("evaluate", decoding=work, models=2, served=served) for served in (False, True))
    assert seconds(vllm, shape, RATES) - seconds(ours, shape, RATES) == pytest.approx(2 * SERVING_SECONDS)
    a_pass = 2048 * (3 * 4000 * 4 + 12 * 1000)
    logits = 8 * 2 * 1000
    expected = 1e9 + 4e9 + a_pass + logits + 3 * 128 * 16_000
    assert peak_bytes(vllm, shape, CPU) == pytest.approx(expected, rel=1e-3)


def _of(job: Job, stage: str) -> StageEstimate:
    return next(found for found in estimate(job).stages if found.name == stage)


def test_a_teacher_who_is_asked_twice_as_much_at_once_takes_half_as_long(model_folder: Path, tmp_path: Path) -> None:
    taken = []
    for concurrency in (0, 2, 4):
        asked = {"base_url": "http://127.0.0.1:1/v1", "model": "any", "concurrency": concurrency}
        stages = {**SHORT, "reward_model": {"corrections": asked if concurrency else None}}
        taken.append(_of(_job("allo", model_folder, tmp_path / str(concurrency), stages), "reward_model").seconds)
    alone, two, four = (band.expected for band in taken)
    assert two > alone + 1
    assert two - alone == pytest.approx(2 * (four - alone))


def test_a_rewriter_of_its_own_is_counted_as_large_as_it_is(model_folder: Path, tmp_path: Path) -> None:
    small = LlamaConfig(**{**tiny_model().config.to_dict(), "num_hidden_layers": 1, "intermediate_size": 16})
    LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    jobs = [
        _job("allo", model_folder, tmp_path / name, {**SHORT, "reward_model": {"model": "small"}})
        for name in ("same", "own")
    ]
    jobs[1] = replace(jobs[1], rewriter=tmp_path / "small")
    same, own = (_of(job, "reward_model") for job in jobs)
    assert own.disk_bytes == 4 * shape_of(tmp_path / "small").weights < same.disk_bytes
    assert own.peak_memory_bytes < same.peak_memory_bytes
    assert own.seconds.expected < same.seconds.expected
    judged = [_of(job, "token_rewards").seconds.expected for job in jobs]
    assert judged[1] < judged[0]
    assert _of(jobs[0], "forget").seconds == _of(jobs[1], "forget").seconds


def test_in_16_bits_forgetting_scores_its_reference_anew(model_folder: Path, tmp_path: Path) -> None:
    tokens = []
    for precision, loss in (("float32", "npo"), ("bfloat16", "npo"), ("bfloat16", "simnpo")):
        stages = {**SHORT, "forget": {"precision": precision, "loss": loss}}
        tokens.append(_of(_job("allo", model_folder, tmp_path / precision / loss, stages), "forget").tokens)
    assert tokens[2] == tokens[0] > 0
    assert tokens[1] == 2 * tokens[0], "in the rows of the one epoch"


def test_a_mask_of_a_twentieth_needs_less_memory_and_disk_than_all_weights() -> None:
    shape = _shape()
    row = Passes(tokens=100, attended=10000, scored=10, rows=1, longest=100)
    dense = Load("sft", "dense", training=row, checkpoints=1)
    sparse = Load("forget", "sparse", 0.05, training=row, deltas=1, weight_bytes=2)
    difference = peak_bytes(dense, shape, CPU) - peak_bytes(sparse, shape, CPU)
    assert difference > (16 - 3) * shape.weights - 10 * shape.largest
    assert disk_bytes(sparse, shape) < 0.05 * disk_bytes(dense, shape)


def test_a_job_that_cannot_be_planned_is_refused_with_its_reason(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no stage 'warmup'"):
        estimate(_job("supervised", model_folder, tmp_path, {"warmup": {}}))


def test_a_job_without_a_problem_that_fits_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="longer than 1 tokens"):
        estimate(_job("dpo", model_folder, tmp_path, {"sample": {"max_prompt_tokens": 1}}))


def test_a_job_takes_the_most_memory_of_a_stage_and_the_disk_of_all(model_folder: Path, tmp_path: Path) -> None:
    found: Estimate = estimate(_job("allo", model_folder, tmp_path, {"sft": {}, **SHORT}))
    total = found.total()
    assert total.peak_memory_bytes == max(stage.peak_memory_bytes for stage in found.stages)
    assert total.seconds.expected == pytest.approx(sum(stage.seconds.expected for stage in found.stages))
    assert total.disk_bytes == sum(stage.disk_bytes for stage in found.stages)
    assert total.disk_bytes > 3 * 4 * shape_of(model_folder).weights  # sft, warmup, reward_model


def test_times_are_shown_as_a_clock_shows_them() -> None:
    assert [duration(taken) for taken in (0.4, 59.6, 317, 12000)] == ["0:00", "1:00", "5:17", "3:20:00"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"method": "ppo", "inputs": {}}', '{"method": "dpo", "inputs": {"model": "m"}}']
)
def test_a_file_that_names_no_job_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(content)
    with pytest.raises((ValueError, KeyError, TypeError)):
        Job.read(path)


def test_the_command_explains_itself_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["estimate", "--config", str(tmp_path / "nowhere.json")])
    assert main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert "nowhere.json does not name a job" in line


def _shape() -> Shape:
    """A thousand million weights, of which a million are the embedding; two layers."""
    return Shape(
        weights=10**9,
        stored_bytes=4 * 10**9,
        layers=2,
        hidden=1000,
        intermediate=4000,
        heads=10,
        kv_heads=10,
        head_size=100,
        vocabulary=1000,
        tied=True,
        largest=10**6,
    )
