"""A method as a graph of stages: what each reads and what it writes. Free of torch.

An input is named by where it comes from: `model`, `training_file`, `validation_file`, `retention_file`,
`corrections_file`, `masks`, `rewriter`, or `<stage>.<output>`. Every input and output is a folder of files; an uploaded
file is a folder that holds `data.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from allo_engine.checks import (
    Data,
    Format,
    Method,
    PlanError,
    check_answers,
    check_corrections,
    check_formats,
    check_judge,
    check_left_out,
    check_masks,
    check_multiplier,
    check_names,
    check_solutions,
    check_templates,
    check_update,
    did_you_mean,
    shown,
    whole_numbers,
)
from allo_engine.config import CONFIGS, SampleConfig, SftConfig, StageConfig
from allo_engine.rounds import kind_of, named, round_of, seed_of
from allo_engine.settings import Settings
from allo_engine.source import stage_code

__all__ = [
    "METHODS",
    "MODELS",
    "OUTPUTS",
    "TRAINED",
    "Data",
    "Format",
    "Method",
    "PlanError",
    "PlannedStage",
    "did_you_mean",
    "digest",
    "model_source",
    "plan",
    "shown",
    "stage_codes",
    "warnings",
    "whole_numbers",
]

METHODS: tuple[Method, ...] = ("supervised", "dpo", "allo")

OUTPUTS: dict[str, tuple[str, ...]] = {
    "sft": ("checkpoint",),
    "sample": ("responses",),
    "pair": ("pairs", "negatives"),
    "warmup": ("checkpoint",),
    "locate": ("masks",),
    "reward_model": ("checkpoint",),
    "token_rewards": ("scores",),
    "forget": ("delta", "checkpoint"),
    "improve": ("delta", "checkpoint"),
    "evaluate": ("report",),
}
"""What each stage writes: one folder an output."""

TRAINED = ("sft", "warmup", "reward_model", "forget", "improve")
"""The stages that train: each has steps, a loss and a checkpoint."""

MODELS = tuple(kind for kind in TRAINED if kind != "reward_model")
"""Those of them that leave a model of the job's: the rewriter is no answer to a problem."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a job: its settings, and where each of its inputs comes from. `kind` is what is run."""

    name: str
    config: StageConfig
    inputs: Mapping[str, str]

    @property
    def kind(self) -> str:
        return kind_of(self.name)

    def needs(self) -> tuple[str, ...]:
        """The stages that must have finished before this one."""
        return tuple(dict.fromkeys(source.split(".")[0] for source in self.inputs.values() if "." in source))


def plan(
    method: Method,
    data: Data,
    stages: Mapping[str, Mapping[str, Any] | None] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[PlannedStage, ...]:
    """The stages of a job in an order in which they can run.

    `stages` holds each stage's own settings and asks, by being there, for the optional ones: `sft`, and the baseline
    `warmup` of an `allo` job in which nothing reads it. A stage that is None there is left out: `forget`, with all that
    is for it alone, and `evaluate`; any other only where nothing reads it. They hold for every round of the job.

    `hyperparameters` are a shorthand: each is given to every stage that has a field of that name;
    `learning_rate_multiplier` scales every stage's default rate; "auto" means the default. `train: "mask"` among them
    leaves no stage dense, so that masks are located by gradient unless a warm-up is asked for; `mask_ratio` among them
    is every mask's. Raises PlanError, naming the field, for whatever cannot run.
    """
    settings = Settings(method, data, stages, hyperparameters, seed)
    check_multiplier(method, settings.shorthand)
    check_formats(method, data, method == "supervised" or "sft" in settings.asked)
    if data.masks:
        check_masks(method, settings.asked, masked(settings))
    graph = _graph(method, data, settings)
    check_left_out(method, graph, settings.left_out)
    check_names(method, graph, settings.asked, settings.shorthand)
    check_templates(method, graph, settings)
    check_solutions(data, graph)
    check_answers(method, data, graph, settings)
    check_update(graph, settings.of)
    check_corrections(data, graph, settings)
    check_judge(method, data, graph, settings)
    return tuple(PlannedStage(name, _config(settings, name), inputs) for name, inputs in graph.items())


def warnings(planned: Sequence[PlannedStage]) -> tuple[str, ...]:
    """What a job may do, and its user should think twice about."""
    configs = {stage.name: stage.config for stage in planned}
    sft, sample = configs.get("sft"), configs.get("sample")
    if isinstance(sft, SftConfig) and isinstance(sample, SampleConfig) and sft.share > sample.skip_share:
        return (
            f"Stage sft learns from problems that are sampled after it (sft.share is {sft.share:g}, sample.skip_share "
            f"{sample.skip_share:g}): pairs of problems that SFT has not seen align better. Leave both out for halves "
            "of the file, or give sft a file of its own in a supervised job.",
        )
    return ()


def model_source(names: Sequence[str]) -> str:
    """The output that is the job's aligned model, of its stages in running order: its last trained checkpoint."""
    kinds = {kind_of(name): name for name in names}
    last = next(kinds[kind] for kind in ("improve", "warmup", "sft") if kind in kinds)
    return f"{last}.checkpoint"


def digest(kind: str, config: Mapping[str, Any], inputs: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The name of a stage's result: sha256 of the code that it runs, its settings and every input file.

    `inputs` maps each input to its files as (relative path, sha256). Settings that never change a result are left out,
    and those at their default, which the code has: a job that was planned before there was one is no other job.
    """
    defaults = CONFIGS[kind]().model_dump(mode="json")
    settings = {
        key: value for key, value in config.items() if key not in _WITHOUT_EFFECT and value != defaults.get(key, ...)
    }
    files = {name: sorted(map(list, pairs)) for name, pairs in inputs.items()}
    text = json.dumps([stage_code(kind), kind, settings, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_codes() -> frozenset[str]:
    """The code of every stage, as results name it (see source.py)."""
    return frozenset(map(stage_code, CONFIGS))


_WITHOUT_EFFECT = {"checkpoint_seconds", "devices", "zero", "offload", "rounds", "later_rounds"}


def masked(settings: Settings) -> tuple[str, ...]:
    """The stages that train in the masks of `locate`."""
    both = [name for name in ("forget", "improve") if name not in settings.left_out]
    return tuple(name for name in both if settings(name, "train") == "mask")


def _config(settings: Settings, name: str) -> StageConfig:
    """A stage's settings, which are those of every round but for the seed."""
    config = settings.of(kind_of(name))
    return config.model_copy(update={"seed": seed_of(config.seed, round_of(name))})


def _graph(method: Method, data: Data, settings: Settings) -> dict[str, dict[str, str]]:
    """Stage → its inputs, in running order."""
    graph: dict[str, dict[str, str]] = {}
    start, pairs, negatives = "model", "training_file", "training_file"
    if method == "supervised" or "sft" in settings.asked:
        graph["sft"] = {"model": "model", "examples": "training_file"}
        start = "sft.checkpoint"
    if method != "supervised" and data.format == "problems":
        graph["sample"] = {"model": start, "problems": "training_file"}
        graph["pair"] = {"model": start, "responses": "sample.responses"}
        pairs, negatives = "pair.pairs", "pair.negatives"
    if method == "dpo" or (method == "allo" and _warms_up(data, settings)):
        graph["warmup"] = {"model": start, "pairs": pairs}
    if method == "allo":
        graph |= _in_masks(data, start, pairs, negatives, settings)
    for number in range(2, cast(int, settings("sample", "rounds")) + 1 if "sample" in graph else 2):
        graph |= _again(method, data, start, number, settings)
    if data.validation is not None and "evaluate" not in settings.left_out:
        retention = {"retention": "retention_file"} if data.retention else {}
        graph["evaluate"] = {"heldout": "validation_file", **retention, "base": "model", **_evaluated(graph)}
    return graph


def _in_masks(data: Data, start: str, pairs: str, negatives: str, settings: Settings) -> dict[str, dict[str, str]]:
    """ALLO's own stages: where to train, on which tokens, and the training in the masks."""
    graph: dict[str, dict[str, str]] = {}
    updated = {"updated": "warmup.checkpoint"}
    if not data.masks and masked(settings):
        graph["locate"] = {"model": start, **_located_by(settings, pairs, updated)}
    if "forget" not in settings.left_out:
        if _by_log_ratio(settings):
            scorer = updated
        else:
            corrections = {"corrections": "corrections_file"} if data.corrections else {}
            # a rewriter of its own writes with the ids of the model that the job aligns
            own = {"model": "rewriter", "policy": "model"} if settings("reward_model", "model") else {"model": start}
            graph["reward_model"] = {**own, "negatives": negatives, **corrections}
            scorer = {"reward_model": "reward_model.checkpoint"}
        graph["token_rewards"] = {"model": start, "negatives": negatives, **scorer}
        graph["forget"] = {"model": start, "scores": "token_rewards.scores"}
    forgotten = {"forgotten": "forget.delta"} if "forget" in graph else {}
    graph["improve"] = {"model": start, **forgotten, "pairs": pairs}
    for stage in masked(settings):
        graph[stage]["masks"] = "masks" if data.masks else "locate.masks"
    return graph


def _again(method: Method, data: Data, start: str, number: int, settings: Settings) -> dict[str, dict[str, str]]:
    """A later round: fresh responses of the model that the round before made, pairs of them, and training on these
    with that model as the reference. What ALLO forgets is what the start model got wrong, so that it forgets once.
    """
    before, last = (named("warmup" if method == "dpo" else "improve", at) for at in (number - 1, number))
    sample, pair, warmup, locate = (named(kind, number) for kind in ("sample", "pair", "warmup", "locate"))
    model, pairs = f"{before}.checkpoint", f"{pair}.pairs"
    graph = {
        sample: {"model": model, "problems": "training_file"},
        pair: {"model": start, "responses": f"{sample}.responses"},  # of a model it reads the tokenizer alone
    }
    if method == "dpo":
        return graph | {last: {"model": model, "pairs": pairs}}
    masks = {"masks": "masks" if data.masks else "locate.masks"} if "improve" in masked(settings) else {}
    if masks and not data.masks and settings("locate", "later_rounds") == "fresh":
        if _moved(settings):
            graph[warmup] = {"model": model, "pairs": pairs}
        graph[locate] = {"model": model, **_located_by(settings, pairs, {"updated": f"{warmup}.checkpoint"})}
        masks = {"masks": f"{locate}.masks"}
    return graph | {last: {"model": start, "aligned": f"{before}.delta", "pairs": pairs, **masks}}


def _located_by(settings: Settings, pairs: str, updated: dict[str, str]) -> dict[str, str]:
    """What `locate` reads beside the model."""
    return {"gradient": {"pairs": pairs}, "random": {}}.get(str(settings("locate", "importance")), updated)


def _moved(settings: Settings) -> bool:
    """Whether masks are located by what a warm-up moved."""
    return settings("locate", "importance") in ("update", "least")


def _warms_up(data: Data, settings: Settings) -> bool:
    """Whether anything reads the warm-up, or the user wants it as the baseline."""
    located_by_it = bool(masked(settings)) and not data.masks and _moved(settings)
    scored_by_it = "forget" not in settings.left_out and _by_log_ratio(settings)
    return located_by_it or scored_by_it or "warmup" in settings.asked


def _by_log_ratio(settings: Settings) -> bool:
    return settings("token_rewards", "source") == "log_ratio"


def _evaluated(graph: Mapping[str, Any]) -> dict[str, str]:
    """Every model that a job makes, by the name it has in the report: where there is one, in its sparse form."""
    made = {name: OUTPUTS[kind_of(name)][0] for name in graph if kind_of(name) in MODELS}
    return {name: f"{name}.{output}" for name, output in made.items()}
