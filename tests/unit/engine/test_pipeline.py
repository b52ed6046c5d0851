from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from allo_engine.config import CONFIGS, ImproveConfig
from allo_engine.pipeline import OUTPUTS, Data, Format, PlanError, digest, model_source, plan, warnings

PROBLEMS = Data("problems", validation="problems")
LOCATE = "method.allo.stages.locate."
WARMUP, WARMUP_OF_DPO = "method.allo.stages.warmup.", "method.dpo.stages.warmup."
TEACHER = "method.allo.stages.reward_model.corrections."
BY_FTP = {"corrections": {"base_url": "ftp://x", "model": "t"}}
NO_MODEL = {"corrections": {"base_url": "http://x"}}
TAUGHT = {"corrections": {"base_url": "http://x/v1", "model": "t"}}
IN_A_MASK, LEAST = {"train": "mask"}, {"importance": "least"}
MULTIPLIER = "learning_rate_multiplier"
JUDGE = "method.dpo.stages.evaluate.judge"
JUDGED = {"judge": {"base_url": "http://x/v1", "model": "j"}}
BESIDE_FORGET = {"judge": {"base_url": "http://x/v1", "model": "j", "against": "forget"}}
PREFERENCES = Data("preferences", lines_without_solution=(3, 7))
IN_MASKS = Data("problems", masks=True)
SCALES, TRIED = "method.allo.stages.improve.scales", {"validation_share": 0.1, "scales": [0.5, 1]}


def names(*arguments: Any, **settings: Any) -> list[str]:
    return [stage.name for stage in plan(*arguments, **settings)]


def test_the_stages_of_each_method() -> None:
    aligning = ["warmup", "locate", "reward_model", "token_rewards", "forget", "improve"]
    assert names("allo", Data("problems")) == ["sample", "pair", *aligning]
    assert names("allo", PROBLEMS, {"sft": {}}) == ["sft", "sample", "pair", *aligning, "evaluate"]
    assert names("dpo", PROBLEMS) == ["sample", "pair", "warmup", "evaluate"]
    assert names("dpo", PREFERENCES) == ["warmup"]
    assert names("supervised", Data("chats")) == ["sft"]
    assert names("allo", Data("preferences")) == aligning


def allo_jobs() -> Iterator[tuple[Data, dict[str, Any]]]:
    """Every graph that method allo has: (what the job brings, its stages' settings)."""
    masks, importance, source = (False, True), ("update", "gradient", "random"), ("reward_model", "log_ratio", None)
    formats: tuple[Format, ...] = ("problems", "preferences")
    for form, asked, brings, found, scored in product(formats, ((), ("warmup",)), masks, importance, source):
        stages: dict[str, Any] = {"token_rewards": {"source": scored}} if scored else {"forget": None}
        stages |= {name: {} for name in asked}
        if not brings:
            stages["locate"] = {"importance": found}
        yield Data(form, corrections=True, validation=form, masks=brings), stages


def test_a_retention_file_is_read_by_the_evaluation_alone_whatever_it_holds() -> None:
    planned = plan("dpo", Data("problems", validation="problems", retention="chats"))
    readers = {stage.name: stage.inputs["retention"] for stage in planned if "retention_file" in stage.inputs.values()}
    assert readers == {"evaluate": "retention_file"}


def test_every_input_is_given_or_an_output_of_an_earlier_stage() -> None:
    for data, stages in allo_jobs():
        given = {"model", "training_file", "validation_file", "corrections_file", *(["masks"] if data.masks else [])}
        done: list[str] = []
        for stage in plan("allo", data, stages):
            for source in stage.inputs.values():
                name, _, output = source.partition(".")
                assert (name in done and output in OUTPUTS[name]) if output else source in given
            assert set(stage.needs()) <= set(done)
            done.append(stage.name)


def test_a_warm_up_runs_where_it_is_read_or_asked_for() -> None:
    for data, stages in allo_jobs():
        planned = {stage.name: stage for stage in plan("allo", data, stages)}
        readers = [name for name, stage in planned.items() if "warmup" in stage.needs() and name != "evaluate"]
        assert ("warmup" in planned) == bool(readers or "warmup" in stages)
        assert ("warmup" in planned["evaluate"].inputs) == ("warmup" in planned)
        assert model_source(list(planned)) == "improve.checkpoint"


def test_given_masks_take_the_place_of_locating() -> None:
    in_given = plan("allo", Data("preferences", masks=True, validation="preferences"))
    assert [stage.name for stage in in_given] == ["reward_model", "token_rewards", "forget", "improve", "evaluate"]
    inputs = {stage.name: stage.inputs for stage in in_given}
    assert inputs["forget"]["masks"] == inputs["improve"]["masks"] == "masks"
    own = {stage.name: stage.inputs for stage in plan("allo", Data("preferences"))}
    assert own["forget"]["masks"] == own["improve"]["masks"] == "locate.masks"
    assert own["locate"] == {"model": "model", "updated": "warmup.checkpoint"}


def test_the_gradient_is_located_on_pairs_without_a_warm_up() -> None:
    stages = {"locate": {"importance": "gradient"}}
    assert "warmup" not in names("allo", PROBLEMS, stages)
    by_name = {stage.name: stage for stage in plan("allo", PROBLEMS, {**stages, "sft": {}})}
    assert by_name["locate"].inputs == {"model": "sft.checkpoint", "pairs": "pair.pairs"}
    assert by_name["locate"].needs() == ("sft", "pair")
    from_preferences = {stage.name: stage for stage in plan("allo", Data("preferences"), stages)}
    assert from_preferences["locate"].inputs == {"model": "model", "pairs": "training_file"}


def test_random_masks_need_neither_warm_up_nor_pairs() -> None:
    by_name = {stage.name: stage for stage in plan("allo", PROBLEMS, {"locate": {"importance": "random"}})}
    assert "warmup" not in by_name
    assert by_name["locate"].inputs == {"model": "model"}


def test_a_job_may_forget_nothing() -> None:
    planned = {stage.name: stage for stage in plan("allo", PROBLEMS, {"forget": None, "sft": {}})}
    assert list(planned) == ["sft", "sample", "pair", "warmup", "locate", "improve", "evaluate"]
    improve = {"model": "sft.checkpoint", "pairs": "pair.pairs", "masks": "locate.masks"}
    assert planned["improve"].inputs == improve
    assert planned["evaluate"].inputs.keys() == {"heldout", "base", "sft", "warmup", "improve"}
    least = {"forget": None, "locate": {"importance": "random"}, "evaluate": None}
    assert names("allo", PREFERENCES, least) == ["locate", "improve"]  # whose lines have no solutions
    assert names("allo", PREFERENCES, {"forget": None}, {"train": "all"}) == ["improve"]
    narrow = {"warmup": {"train": "mask", "mask_ratio": 0.1}, "locate": {"forget_ratio": 0.2, "improve_ratio": 0.1}}
    assert "forget" not in names("allo", PROBLEMS, {**narrow, "forget": None})


def test_what_is_left_out_anyway_may_be_left_out() -> None:
    out = dict.fromkeys(("sft", "warmup", "reward_model"))
    stages = {"token_rewards": {"source": "reward_model"}, "locate": {"importance": "gradient"}}
    assert plan("allo", PROBLEMS, stages | {"sft": None, "warmup": None}) == plan("allo", PROBLEMS, stages)
    assert plan("dpo", PREFERENCES, out | {"warmup": {}}) == plan("dpo", PREFERENCES)


def test_sft_and_sampling_take_halves_of_the_same_file() -> None:
    def shares(*arguments: Any) -> list[tuple[str, float]]:
        configs = [(stage.name, stage.config.model_dump()) for stage in plan(*arguments)]
        return [(name, config[key]) for name, config in configs for key in ("share", "skip_share") if key in config]

    assert shares("allo", PROBLEMS, {"sft": {}}) == [("sft", 0.5), ("sample", 0.5)]
    assert shares("dpo", PROBLEMS, {"sft": {"share": 0.2}}) == [("sft", 0.2), ("sample", 0.2)]
    assert shares("dpo", PROBLEMS, {"sft": {}}, {"share": 0.3}) == [("sft", 0.3), ("sample", 0.3)]
    assert shares("allo", PROBLEMS, {"sft": {"share": 1}}) == [("sft", 1), ("sample", 0)]
    assert shares("allo", PROBLEMS) == [("sample", 0)]
    assert shares("dpo", PROBLEMS, {"sample": {"skip_share": 0.4}}) == [("sample", 0.4)]  # SFT was in another job
    assert shares("supervised", PROBLEMS) == shares("supervised", Data("chats")) == [("sft", 1)]


def test_a_job_that_samples_what_sft_saw_is_told() -> None:
    def told(stages: dict[str, Any]) -> int:
        return len(warnings(plan("dpo", PROBLEMS, stages)))

    assert [told({"sft": {}}), told({}), told({"sft": {"share": 0.3}, "sample": {"skip_share": 0.4}})] == [0, 0, 0]
    assert [told({"sft": {"share": 1}}), told({"sft": {}, "sample": {"skip_share": 0.4}})] == [1, 1]


def test_the_log_ratio_needs_neither_reward_model_nor_solutions() -> None:
    stages = {"token_rewards": {"source": "log_ratio"}}
    assert "reward_model" not in names("allo", PREFERENCES, stages)
    in_given = Data("preferences", lines_without_solution=(3,), masks=True)
    assert names("allo", in_given, stages) == ["warmup", "token_rewards", "forget", "improve"]


def test_a_shorthand_changes_the_graph_as_the_stages_own_setting_does() -> None:
    shorthand = {"source": "log_ratio", "importance": "gradient"}
    stages = {"token_rewards": {"source": "log_ratio"}, "locate": {"importance": "gradient"}}
    assert plan("allo", PREFERENCES, None, shorthand) == plan("allo", PREFERENCES, stages)


def test_one_word_leaves_no_stage_dense() -> None:
    planned = plan("allo", PROBLEMS, {"sft": {}}, {"train": "mask", "mask_ratio": 0.02})
    configs = {stage.name: stage.config.model_dump() for stage in planned}
    assert "warmup" not in configs
    assert {config["train"] for config in configs.values() if "train" in config} == {"mask"}
    assert configs["locate"]["importance"] == "gradient"
    assert (
        configs["locate"]["forget_ratio"] == configs["locate"]["improve_ratio"] == configs["sft"]["mask_ratio"] == 0.02
    )


def test_plain_defaults_are_the_published_ones() -> None:
    configs = {stage.name: stage.config.model_dump() for stage in plan("allo", PROBLEMS, {"sft": {}})}
    trained = {name: config["train"] for name, config in configs.items() if "train" in config}
    assert trained == {"sft": "all", "warmup": "all", "reward_model": "all", "forget": "mask", "improve": "mask"}
    assert configs["locate"]["importance"] == "update"


def test_a_warm_up_that_is_asked_for_is_what_masked_stages_are_located_by() -> None:
    planned = {stage.name: stage for stage in plan("allo", PROBLEMS, {"warmup": {}}, {"train": "mask"})}
    assert planned["locate"].inputs["updated"] == "warmup.checkpoint"
    own = plan("allo", PROBLEMS, {"locate": {"importance": "update"}}, {"train": "mask"})
    assert planned == {stage.name: stage for stage in own}


def test_where_no_stage_trains_in_them_there_are_no_masks() -> None:
    planned = {stage.name: stage for stage in plan("allo", PROBLEMS, None, {"train": "all"})}
    assert not {"warmup", "locate"} & planned.keys()
    assert "masks" not in planned["forget"].inputs.keys() | planned["improve"].inputs.keys()
    half = {stage.name: stage.inputs for stage in plan("allo", PROBLEMS, {"forget": {"train": "all"}})}
    assert half["improve"]["masks"] == "locate.masks"
    assert "masks" not in half["forget"]


ROUNDS = {"sample": {"rounds": 3}}


def test_a_later_round_samples_pairs_and_trains_from_the_model_of_the_round_before() -> None:
    once, thrice = plan("allo", PROBLEMS, {"sft": {}}), plan("allo", PROBLEMS, {"sft": {}, **ROUNDS})
    again = ["sample-2", "pair-2", "improve-2", "sample-3", "pair-3", "improve-3"]
    assert [stage.name for stage in thrice] == [*(stage.name for stage in once[:-1]), *again, "evaluate"]
    inputs = {stage.name: stage.inputs for stage in thrice}
    assert inputs["sample-3"] == {"model": "improve-2.checkpoint", "problems": "training_file"}
    assert inputs["pair-3"] == {"model": "sft.checkpoint", "responses": "sample-3.responses"}
    own = {"pairs": "pair-3.pairs", "masks": "locate.masks"}
    assert inputs["improve-3"] == {"model": "sft.checkpoint", "aligned": "improve-2.delta", **own}
    assert list(inputs["evaluate"])[-2:] == ["improve-2", "improve-3"]
    assert model_source(list(inputs)) == "improve-3.checkpoint"


def test_vanilla_dpo_has_rounds_too() -> None:
    inputs = {stage.name: stage.inputs for stage in plan("dpo", PROBLEMS, ROUNDS)}
    assert inputs["warmup-2"] == {"model": "warmup.checkpoint", "pairs": "pair-2.pairs"}
    assert inputs["evaluate"]["warmup-3"] == "warmup-3.checkpoint" == model_source(list(inputs))


@pytest.mark.parametrize("importance", ["update", "gradient", "random"])
def test_a_later_round_may_locate_anew(importance: str) -> None:
    locate = {"importance": importance, "later_rounds": "fresh"}
    inputs = {stage.name: stage.inputs for stage in plan("allo", PROBLEMS, {"sample": {"rounds": 2}, "locate": locate})}
    by = {"update": {"updated": "warmup-2.checkpoint"}, "gradient": {"pairs": "pair-2.pairs"}}.get(importance, {})
    assert inputs["locate-2"] == {"model": "improve.checkpoint", **by}
    assert ("warmup-2" in inputs) == ("warmup-2" in inputs["evaluate"]) == (importance == "update")
    assert inputs["improve-2"]["masks"] == "locate-2.masks"


def test_rounds_in_given_masks_or_in_none_locate_nothing() -> None:
    for data, train in ((IN_MASKS, "mask"), (PROBLEMS, "all")):
        inputs = {stage.name: stage.inputs for stage in plan("allo", data, ROUNDS, {"train": train})}
        assert not any(name.startswith("locate") for name in inputs)
        assert inputs["improve-3"].get("masks") == ("masks" if data.masks else None)


def test_a_round_draws_its_own_samples_and_shares_all_other_settings() -> None:
    planned = {stage.name: stage for stage in plan("dpo", PROBLEMS, {"sample": {"rounds": 3, "n": 4}}, None, 5)}
    configs = [planned[name].config for name in ("sample", "sample-2", "sample-3")]
    assert len({config.seed for config in configs}) == 3
    assert [config.model_copy(update={"seed": 5}) for config in configs] == [planned["sample"].config] * 3


def test_the_first_round_is_the_job_without_others() -> None:
    once, twice = (plan("allo", PROBLEMS, {"sample": {"rounds": rounds}}) for rounds in (1, 2))
    results = [
        {stage.name: digest(stage.kind, stage.config.model_dump(), {}) for stage in job} for job in (once, twice)
    ]
    assert results[0].items() <= results[1].items()


def test_the_model_of_a_job_is_its_last_checkpoint() -> None:
    assert model_source(names("allo", PROBLEMS)) == "improve.checkpoint"
    assert model_source(names("dpo", PROBLEMS, {"sft": {}})) == "warmup.checkpoint"
    assert model_source(names("supervised", PROBLEMS)) == "sft.checkpoint"


def test_a_slip_is_told_with_what_it_is_nearest_to_and_another_methods_stage_is_none() -> None:
    for settings, said in (
        ({"sfft": {}}, "no stage 'sfft'. Did you mean 'sft'? Of method 'supervised', it runs sft, evaluate."),
        ({"forget": {}}, "no stage 'forget'. Of method 'supervised', it runs sft, evaluate."),
        ({"sft": {"lerning_rate": 1}}, "is no setting of this stage. Did you mean 'learning_rate'? It has average, "),
        ({"sft": {"n_epochs": "x"}}, "Stage sft: n_epochs should be a valid integer"),
    ):
        with pytest.raises(PlanError, match=re.escape(said)):
            plan("supervised", PROBLEMS, settings)


@pytest.mark.parametrize(
    ("arguments", "param", "word"),
    [
        (("allo", PREFERENCES), "training_file", "line 3, 7"),
        (("allo", Data("chats")), "training_file", "problems or preferences"),
        (("dpo", Data("preferences", validation="problems")), "validation_file", "same format"),
        (("dpo", Data("problems", retention="chats")), "retention_file", "beside a validation file"),
        (("dpo", replace(PROBLEMS, retention="corrections")), "retention_file", "holds corrections"),
        (("dpo", Data("preferences", validation="preferences"), {"evaluate": JUDGED}), JUDGE, "holds preferences"),
        (("dpo", PROBLEMS, {"evaluate": BESIDE_FORGET}), f"{JUDGE}.against", "model 'forget'; it has base."),
        (("dpo", Data("preferences"), {"sft": {}}), "method.dpo.stages.sft", "problems or chats"),
        (("dpo", PROBLEMS, {"improve": {}}), "method.dpo.stages.improve", "no stage"),
        (("dpo", IN_MASKS), "masks", "method allo"),
        (("supervised", IN_MASKS, {"locate": {}}), "masks", "leave masks out"),
        (("allo", IN_MASKS, {"locate": {"improve_ratio": 0.1}}), "method.allo.stages.locate", "leave masks out"),
        (("allo", IN_MASKS, None, {"improve_ratio": 0.1}), "method.allo.hyperparameters.improve_ratio", "No stage"),
        (("allo", IN_MASKS, {"token_rewards": {"source": "x"}}), "method.allo.stages.token_rewards.source", "given"),
        (("allo", PROBLEMS, {"locate": {"forget_ratio": 0}}), LOCATE + "forget_ratio", "greater than 0"),
        (("allo", PROBLEMS, {"locate": {"improve_ratio": 1.5}}), LOCATE + "improve_ratio", "equal to 1"),
        (("allo", PROBLEMS, {"improve": {"train": "some"}}), "method.allo.stages.improve.train", "'all' or 'mask'"),
        (("allo", PROBLEMS, {"warmup": {"train": "mask", "mask_ratio": 0.01}}), WARMUP + "mask_ratio", "0.05 of all"),
        (("allo", PROBLEMS, {"warmup": IN_A_MASK, "locate": LEAST}), LOCATE + "importance", "gradient"),
        (("allo", IN_MASKS, None, {"train": "all"}), "masks", "leave masks out"),
        (("allo", Data("problems", corrections=True), {"reward_model": TAUGHT}), TEACHER[:-1], "leave one"),
        (("allo", PROBLEMS, {"reward_model": BY_FTP}), TEACHER + "base_url", "pattern"),
        (("allo", PROBLEMS, {"reward_model": NO_MODEL}), TEACHER + "model", "required"),
        (("allo", PROBLEMS, {"improve": {"lr": 1}}), "method.allo.stages.improve.lr", "learning_rate"),
        (("dpo", PROBLEMS, None, {"rank": 8}), "method.dpo.hyperparameters.rank", "learning_rate"),
        (("dpo", PROBLEMS, None, {"n_epochs": 0}), "method.dpo.stages.warmup.n_epochs", "greater than or equal to 1"),
        (("dpo", PROBLEMS, None, {MULTIPLIER: "x"}), f"method.dpo.hyperparameters.{MULTIPLIER}", "number"),
        (("dpo", PROBLEMS, None, {MULTIPLIER: 10**400}), f"method.dpo.hyperparameters.{MULTIPLIER}", "at most 1e9"),
        (("dpo", PROBLEMS, None, {MULTIPLIER: -(10**5000)}), f"method.dpo.hyperparameters.{MULTIPLIER}", "-a huge"),
        (("dpo", PROBLEMS, None, {MULTIPLIER: float("nan")}), f"method.dpo.hyperparameters.{MULTIPLIER}", "given: nan"),
        (("dpo", PROBLEMS, None, {"n_epochs": 10**11}), "method.dpo.stages.warmup.n_epochs", "equal to 10000"),
        (("allo", PROBLEMS, {"forget": None, "token_rewards": {}}), "method.allo.stages.token_rewards", "no stage"),
        (("allo", PROBLEMS, {"improve": None}), "method.allo.stages.improve", "it is what allo does"),
        (("allo", PROBLEMS, {"warmup": None}), "method.allo.stages.warmup", "locate read"),
        (("allo", PROBLEMS, {"forgot": None}), "method.allo.stages.forgot", "mean 'forget'"),
        (("allo", IN_MASKS, {"forget": None, "improve": {"train": "all"}}), "masks", "leave masks out"),
        (("dpo", PROBLEMS, {"pair": {"pass_rate": [0.9, 0.1]}}), "method.dpo.stages.pair.pass_rate", "low may not"),
        (("dpo", PROBLEMS, {"pair": {"pass_rate": [0.1, 1.1]}}), "method.dpo.stages.pair.pass_rate.1", "less than"),
        (("dpo", PROBLEMS, {"sft": {"share": 0}}), "method.dpo.stages.sft.share", "greater than 0"),
        (("dpo", PROBLEMS, {"warmup": {"nll": -1}}), WARMUP_OF_DPO + "nll", "greater than or equal to 0"),
        (("dpo", PROBLEMS, {"warmup": {"dpop": 5, "trainer": "trl"}}), WARMUP_OF_DPO + "trainer", "leave dpop out"),
        (("dpo", PROBLEMS, {"warmup": {"average": 5}}), WARMUP_OF_DPO + "average", "than there are checkpoints, 4:"),
        (("dpo", PROBLEMS, {"warmup": {"average": 2, "trainer": "trl"}}), WARMUP_OF_DPO + "trainer", "leave average"),
        (("allo", PROBLEMS, {"improve": {"scales": [0.5, 1]}}), SCALES, "set validation_share above 0"),
        (("allo", PROBLEMS, {"improve": {**TRIED, "train": "all"}}), SCALES, "tried in a mask"),
        (("allo", PROBLEMS, {"improve": {**TRIED, "scale": 0.5}}), SCALES, "leave one of them out"),
        (("allo", PROBLEMS, {"improve": {**TRIED, "scales": [1, 1]}}), SCALES, "hold a value twice"),
        (("dpo", PROBLEMS, {"improve-2": {}}), "method.dpo.stages.improve-2", "set those of improve"),
        (("dpo", PREFERENCES, None, {"rounds": 2}), "method.dpo.hyperparameters.rounds", "No stage"),
        (("dpo", PROBLEMS, None, {"rounds": 17}), "method.dpo.stages.sample.rounds", "equal to 16"),
        (("dpo", PROBLEMS, {"sample": {"n": 10**9}}), "method.dpo.stages.sample.n", "equal to 10000"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_is_refused_with_the_field_to_change(arguments: Any, param: str, word: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(*arguments)
    assert caught.value.param == param
    assert word in caught.value.message
    assert str(pickle.loads(pickle.dumps(caught.value))) == caught.value.message  # noqa: S301 - errors cross processes


NUMBERS = [
    (stage, name)
    for stage, config in CONFIGS.items()
    for name, field in config.model_fields.items()
    if any(kind in str(field.annotation) for kind in ("int", "float"))
]


@pytest.mark.parametrize("value", [10**400, "inf", float("inf"), float("nan"), "NaN", -1, 1e300])
@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_no_number_of_any_stage_is_without_bounds(stage: str, name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        CONFIGS[stage].model_validate({name: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {name}


def test_shorthands_reach_every_stage_that_has_them_and_stages_override() -> None:
    planned = plan("allo", PROBLEMS, {"improve": {"n_epochs": 3}}, {"n_epochs": 2, "beta": "auto", "learning_rate_multiplier": 10}, 7)  # fmt: skip  # noqa: E501
    configs = {stage.name: stage.config.model_dump() for stage in planned}
    assert [configs[name]["n_epochs"] for name in ("warmup", "reward_model", "improve")] == [2, 2, 3]
    assert configs["improve"]["learning_rate"] == pytest.approx(5e-5)
    assert configs["forget"]["beta"] == 0.1
    assert {config["seed"] for config in configs.values()} == {7}


@pytest.mark.parametrize(
    ("method", "data", "stages", "hyperparameters", "expected"),
    [
        ("dpo", PROBLEMS, {}, {}, {"warmup": 1}),
        ("dpo", PROBLEMS, {"warmup": {"nll": 0}}, {}, {"warmup": 0}),
        ("dpo", PROBLEMS, {"warmup": {"trainer": "trl"}}, {}, {"warmup": 0}),
        ("dpo", PREFERENCES, {}, {}, {"warmup": 0}),
        ("allo", PROBLEMS, {}, {}, {"warmup": 0, "improve": 1}),
        ("allo", PROBLEMS, {}, {"nll": 0.5}, {"warmup": 0.5, "improve": 0.5}),
        ("allo", PREFERENCES, {"token_rewards": {"source": "log_ratio"}}, {}, {"warmup": 0, "improve": 0}),
    ],
)
def test_likelihood_is_beside_the_loss_of_what_aligns_on_verified_answers(
    method: Any, data: Data, stages: Any, hyperparameters: Any, expected: dict[str, float]
) -> None:
    configs = {stage.name: stage.config.model_dump() for stage in plan(method, data, stages, hyperparameters)}
    assert {name: configs[name]["nll"] for name in configs if "nll" in configs[name]} == expected


@pytest.mark.parametrize(
    ("stages", "hyperparameters", "rate"),
    [
        ({}, {}, 5e-6),
        ({"locate": {"importance": "random"}}, {}, 5e-5),
        ({"locate": {"importance": "random"}}, {"learning_rate_multiplier": 2}, 1e-4),
        ({"locate": {"importance": "random"}}, {"learning_rate": 1e-6}, 1e-6),
        ({"locate": {"importance": "random"}, "improve": {"learning_rate": 1e-5}}, {}, 1e-5),
        ({"locate": {"importance": "random"}, "improve": {"train": "all"}}, {}, 5e-6),
        ({"locate": {"importance": "gradient"}}, {}, 5e-6),
    ],
)
def test_improving_has_ten_times_its_rate_in_a_random_mask(stages: Any, hyperparameters: Any, rate: float) -> None:
    planned = {stage.name: stage for stage in plan("allo", PROBLEMS, {**stages, "warmup": {}}, hyperparameters)}
    assert planned["improve"].config.model_dump()["learning_rate"] == pytest.approx(rate)


def test_a_digest_names_code_settings_and_inputs_and_nothing_else() -> None:
    config = ImproveConfig().model_dump()
    inputs = {"model": [("a", "1"), ("b", "2")]}
    name = digest("improve", config, inputs)
    assert name == digest("improve", {**config, "checkpoint_seconds": 5.0}, {"model": [("b", "2"), ("a", "1")]})
    assert name != digest("improve", {**config, "beta": 0.2}, inputs)
    assert name != digest("improve", config, {"model": [("a", "1"), ("b", "3")]})
    assert name != digest("forget", config, inputs)


def test_a_setting_at_its_default_is_no_part_of_a_digest() -> None:
    for stage, config in CONFIGS.items():
        defaults = config().model_dump(mode="json")
        assert digest(stage, defaults, {}) == digest(stage, {}, {}) != digest(stage, {"seed": 1}, {})


def test_every_stage_has_settings_and_outputs() -> None:
    assert set(CONFIGS) == set(OUTPUTS)
