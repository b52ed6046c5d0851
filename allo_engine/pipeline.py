"""A method as a graph of stages: what each reads and what it writes. Free of torch.

An input is named by where it comes from: `model`, `training_file`, `validation_file`, `corrections_file`, `masks`,
`rewriter`, or `<stage>.<output>`. Every input and output is a folder of files; an uploaded file is a folder that holds
`data.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from allo_engine.checks import (
    Data,
    Format,
    Method,
    PlanError,
    SettingOf,
    check_corrections,
    check_formats,
    check_masks,
    check_multiplier,
    check_names,
    check_solutions,
    check_update,
    did_you_mean,
    masked,
    shown,
)
from allo_engine.config import CONFIGS, StageConfig

__all__ = [
    "METHODS",
    "OUTPUTS",
    "TRAINED",
    "Data",
    "Format",
    "Method",
    "PlanError",
    "PlannedStage",
    "code_version",
    "did_you_mean",
    "digest",
    "model_source",
    "plan",
    "shown",
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


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a job: its settings, and where each of its inputs comes from."""

    name: str
    config: StageConfig
    inputs: Mapping[str, str]

    def needs(self) -> tuple[str, ...]:
        """The stages that must have finished before this one."""
        return tuple(dict.fromkeys(source.split(".")[0] for source in self.inputs.values() if "." in source))


def plan(
    method: Method,
    data: Data,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[PlannedStage, ...]:
    """The stages of a job in an order in which they can run.

    `stages` holds each stage's own settings and asks, by being there, for the optional ones: `sft`, and the baseline
    `warmup` of an `allo` job in which nothing reads it. `hyperparameters` are a shorthand: each is given to every stage
    that has a field of that name; `learning_rate_multiplier` scales every stage's default rate; "auto" means the
    default. `train: "mask"` among them leaves no stage dense, so that masks are located by gradient unless a warm-up is
    asked for; `mask_ratio` among them is every mask's. Raises PlanError, naming the field, for whatever cannot run.
    """
    stages = stages or {}
    shorthand = {key: value for key, value in (hyperparameters or {}).items() if value not in ("auto", None)}

    def config(name: str) -> StageConfig:
        return _config(name, stages, shorthand, seed, method)

    check_multiplier(method, shorthand)
    check_formats(method, data, method == "supervised" or "sft" in stages)

    def setting(stage: str, field: str) -> object:
        return getattr(config(stage), field)

    check_masks(method, data, stages, setting)
    graph = _graph(method, data, stages, setting)
    check_names(method, graph, stages, shorthand)
    check_solutions(data, graph)
    check_update(graph, config)
    check_corrections(data, graph, setting)
    return tuple(PlannedStage(name, config(name), inputs) for name, inputs in graph.items())


def model_source(names: Sequence[str]) -> str:
    """The output that is the job's aligned model: its last trained checkpoint."""
    last = next(name for name in ("improve", "warmup", "sft") if name in names)
    return f"{last}.checkpoint"


def digest(stage: str, config: Mapping[str, Any], inputs: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The name of a stage's result: sha256 of the engine's code, the settings and every input file.

    `inputs` maps each input to its files as (relative path, sha256). Settings that never change a result are left out.
    """
    settings = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    files = {name: sorted(map(list, pairs)) for name, pairs in inputs.items()}
    text = json.dumps([code_version(), stage, settings, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_version() -> str:
    """sha256 of this package's source: results of other code are never taken for results of this one.

    What estimates or exports changes no result.
    """
    root = Path(__file__).parent
    estimates, exports = ((root / room).rglob("*.py") for room in ("estimate", "exports"))
    total = hashlib.sha256()
    for path in sorted(set(root.rglob("*.py")) - {root / "needs.py", *estimates, *exports}):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()


_WITHOUT_EFFECT = {"checkpoint_seconds", "devices", "zero", "offload"}


def _graph(method: Method, data: Data, asked: Container[str], setting: SettingOf) -> dict[str, dict[str, str]]:
    """Stage → its inputs, in running order."""
    graph: dict[str, dict[str, str]] = {}
    start, pairs, negatives = "model", "training_file", "training_file"
    if method == "supervised" or "sft" in asked:
        graph["sft"] = {"model": "model", "examples": "training_file"}
        start = "sft.checkpoint"
    if method != "supervised" and data.format == "problems":
        graph["sample"] = {"model": start, "problems": "training_file"}
        graph["pair"] = {"model": start, "responses": "sample.responses"}
        pairs, negatives = "pair.pairs", "pair.negatives"
    if method == "dpo" or (method == "allo" and _warms_up(data, asked, setting)):
        graph["warmup"] = {"model": start, "pairs": pairs}
    if method == "allo":
        graph |= _in_masks(data, start, pairs, negatives, setting)
    if data.validation is not None:
        graph["evaluate"] = {"heldout": "validation_file", "base": "model", **_evaluated(graph)}
    return graph


def _in_masks(data: Data, start: str, pairs: str, negatives: str, setting: SettingOf) -> dict[str, dict[str, str]]:
    """ALLO's own stages: where to train, on which tokens, and the training in the masks."""
    graph: dict[str, dict[str, str]] = {}
    updated = {"updated": "warmup.checkpoint"}
    if not data.masks and masked(setting):
        graph["locate"] = {"model": start, **({"pairs": pairs} if _by_gradient(setting) else updated)}
    if _by_log_ratio(setting):
        scorer = updated
    else:
        corrections = {"corrections": "corrections_file"} if data.corrections else {}
        # a rewriter of its own writes with the ids of the model that the job aligns
        own = {"model": "rewriter", "policy": "model"} if setting("reward_model", "model") else {"model": start}
        graph["reward_model"] = {**own, "negatives": negatives, **corrections}
        scorer = {"reward_model": "reward_model.checkpoint"}
    graph["token_rewards"] = {"model": start, "negatives": negatives, **scorer}
    graph["forget"] = {"model": start, "scores": "token_rewards.scores"}
    graph["improve"] = {"model": start, "forgotten": "forget.delta", "pairs": pairs}
    for stage in masked(setting):
        graph[stage]["masks"] = "masks" if data.masks else "locate.masks"
    return graph


def _warms_up(data: Data, asked: Container[str], setting: SettingOf) -> bool:
    """Whether anything reads the warm-up, or the user wants it as the baseline."""
    located_by_it = bool(masked(setting)) and not data.masks and not _by_gradient(setting)
    return located_by_it or _by_log_ratio(setting) or "warmup" in asked


def _by_gradient(setting: SettingOf) -> bool:
    return setting("locate", "importance") == "gradient"


def _by_log_ratio(setting: SettingOf) -> bool:
    return setting("token_rewards", "source") == "log_ratio"


def _evaluated(graph: Mapping[str, Any]) -> dict[str, str]:
    """Every model that a job makes, by the name it has in the report."""
    made = {
        "sft": "sft.checkpoint",
        "warmup": "warmup.checkpoint",
        "forget": "forget.delta",
        "improve": "improve.delta",
    }
    return {name: source for name, source in made.items() if name in graph}


def _config(
    name: str, stages: Mapping[str, Mapping[str, Any]], shorthand: Mapping[str, Any], seed: int, method: Method
) -> StageConfig:
    cls = CONFIGS[name]
    common = {**_located(stages, shorthand), **shorthand} if name == "locate" else shorthand
    values: dict[str, Any] = {key: value for key, value in common.items() if key in cls.model_fields}
    if "learning_rate_multiplier" in shorthand and "learning_rate" in cls.model_fields:
        values["learning_rate"] = cls.model_fields["learning_rate"].default * shorthand["learning_rate_multiplier"]
    try:
        return cls.model_validate({"seed": seed, **values, **stages.get(name, {})})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {shown(first['input'])})"
        if first["type"] == "extra_forbidden":
            reason = f"is no setting of this stage; it has {', '.join(sorted(cls.model_fields))}"
        else:
            reason = first["msg"][0].lower() + first["msg"][1:]
        param = f"method.{method}.stages.{name}.{field}"
        raise PlanError(f"Stage {name}: {field} {reason}{given}.", param) from None


def _located(stages: Container[str], shorthand: Mapping[str, Any]) -> dict[str, Any]:
    """What the shorthand says of `locate` without naming its settings."""
    by_gradient = {"importance": "gradient"} if shorthand.get("train") == "mask" and "warmup" not in stages else {}
    ratios = dict.fromkeys(("forget_ratio", "improve_ratio"), shorthand.get("mask_ratio"))
    return {**by_gradient, **{name: ratio for name, ratio in ratios.items() if ratio is not None}}
