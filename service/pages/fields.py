"""The settings of stages as fields of a form, read from the engine's own classes: what may be put in, what stands there
otherwise, and what it means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import get_annotations
from typing import Any, Literal

from allo_engine.checks import check_multiplier, typed
from allo_engine.config import CONFIGS, StageConfig
from allo_engine.pipeline import Data, Method, plan
from allo_engine.settings import Settings

Kind = Literal["choice", "number", "text", "json"]

OPTIONAL = {"dpo": ("sft",), "allo": ("sft", "warmup")}
"""By method, the stages that are there where they are asked for."""

LEFT_OUT = {"supervised": ("evaluate",), "dpo": ("evaluate",), "allo": ("forget", "evaluate")}
"""By method, the stages that can be left out."""

ALWAYS_SHOWN = ("train", "learning_rate", "batch_size", "n_epochs", "beta", "backend")
"""Beside a stage's own settings; all others are folded."""

_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True)
class Setting:
    """A field: its place in the request, what it may hold, and what it is where nothing is put in. `options` of a
    choice are values as JSON. `shared` says that its help stands with the settings of all stages."""

    name: str
    label: str
    kind: Kind
    default: str
    help: str
    bounds: str
    options: tuple[str, ...] = ()
    shared: bool = False

    def value(self, text: str) -> Any:
        """What was put in, as JSON has it; what cannot be is left for the engine's class to refuse."""
        if self.kind == "text":
            return None if text == self.default == "null" else text
        return typed(text)

    def text(self, value: Any) -> str:
        """A value as one puts it in."""
        return value if self.kind == "text" and isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class StageForm:
    """A stage: what it is, and its settings, the first of which are shown at once."""

    name: str
    help: str
    first: tuple[Setting, ...]
    more: tuple[Setting, ...]
    optional: bool
    left_out: bool

    @property
    def settings(self) -> tuple[Setting, ...]:
        return self.first + self.more


_SHORTHAND = (
    Setting(
        "hyperparameters.learning_rate_multiplier", "learning rate multiplier", "number", "1",
        "Scales every stage's own learning rate.", "above 0",
    ),
    Setting(
        "hyperparameters.mask_ratio", "mask ratio", "number", "each stage's own",
        "The share of the weights that every mask takes, those of locate too.", "above 0, at most 1",
    ),
)  # fmt: skip
"""What holds for all stages and is more than a setting of theirs."""

_APART = ("seed", "mask_ratio")
"""The job has a seed of its own."""


@cache
def kinds_of(method: Method) -> tuple[str, ...]:
    """The stages that a job of a method can have; which it has, its files and settings say."""
    asked: dict[str, Any] = {name: {} for name in OPTIONAL.get(method, ())}
    return tuple(stage.name for stage in plan(method, Data("problems", validation="problems"), asked, {}))


@cache
def stages_of(method: Method) -> tuple[StageForm, ...]:
    return tuple(_stage(name, method) for name in kinds_of(method))


@cache
def shared_of(method: Method) -> tuple[Setting, ...]:
    """What several stages of a method have: said once for all of them, as `hyperparameters`."""
    counts = Counter(field for name in kinds_of(method) for field in CONFIGS[name].model_fields)
    found: dict[str, Setting] = {}
    for name in kinds_of(method):
        for field, schema in _schemas(CONFIGS[name]).items():
            if counts[field] > 1 and field not in (*found, *_APART):
                found[field] = _setting(f"hyperparameters.{field}", schema, default="each stage's own")
    return (*_SHORTHAND, *found.values())


def settings_of(method: Method) -> dict[str, Setting]:
    """Every field of a method's form, by its name."""
    found = [*shared_of(method), *(setting for stage in stages_of(method) for setting in stage.settings)]
    return {setting.name: setting for setting in found}


def defaults_of(
    method: Method, data: Data, stages: Mapping[str, Any], hyperparameters: Mapping[str, Any]
) -> dict[str, str]:
    """By field, what this very job takes where nothing is put in, if that is not what stands there as published.

    Raises PlanError for settings that cannot be.
    """
    settings, fields = Settings(method, data, stages, hyperparameters, 0), settings_of(method)
    check_multiplier(method, settings.shorthand)
    found: dict[str, str] = {}
    for name in kinds_of(method):
        for field, value in settings.defaults(name).items():
            setting = fields.get(f"stages.{name}.{field}")
            if setting and setting.text(value) != setting.default:
                found[setting.name] = setting.text(value)
    return found


def _stage(name: str, method: Method) -> StageForm:
    config = CONFIGS[name]
    schemas, own = _schemas(config), get_annotations(config)
    first = [field for field in schemas if field in own or field in ALWAYS_SHOWN]
    more = [field for field in schemas if field not in first]
    shared = {setting.name.partition(".")[2] for setting in shared_of(method) if setting.help or setting.bounds}

    def made(fields: Sequence[str]) -> tuple[Setting, ...]:
        return tuple(
            _setting(f"stages.{name}.{field}", schemas[field], shared=field in shared and field not in own)
            for field in fields
        )

    optional, left_out = name in OPTIONAL.get(method, ()), name in LEFT_OUT[method]
    return StageForm(name, (config.__doc__ or "").strip(), made(first), made(more), optional, left_out)


@cache
def _schemas(config: type[StageConfig]) -> dict[str, dict[str, Any]]:
    """Each field's schema; a default that is made anew each time is what an empty class has."""
    found = config.model_json_schema()["properties"]
    empty = config().model_dump(mode="json")
    return {name: {"default": empty[name], **schema} for name, schema in found.items()}


def _setting(name: str, schema: Mapping[str, Any], default: str | None = None, shared: bool = False) -> Setting:
    kinds = schema.get("anyOf", [schema])
    types = {one.get("type") for one in kinds}
    options = _options(kinds)
    kind: Kind = (
        "choice" if options else
        "number" if types <= {"integer", "number", "null"} else
        "text" if types <= {"string", "null"} else
        "json"
    )  # fmt: skip
    field = Setting(name, name.rpartition(".")[2].replace("_", " "), kind, "", "", "")
    return Setting(
        name=name,
        label=field.label,
        kind=kind,
        default=field.text(schema["default"]) if default is None else default,
        help=schema.get("description", ""),
        bounds=_bounds(kinds),
        options=options,
        shared=shared,
    )


def _options(kinds: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The values of a field that has few; none for one that takes more than these."""
    values: list[Any] = []
    for one in kinds:
        if "enum" in one:
            values += one["enum"]
        elif "const" in one:
            values.append(one["const"])
        elif one.get("type") == "boolean":
            values += [True, False]
        else:
            return ()
    return tuple(map(json.dumps, values))


def _bounds(kinds: Sequence[Mapping[str, Any]]) -> str:
    """In words, where they tell more than that a number is no monster."""
    told = [
        f"{words} {one[key]:g}"
        for one in kinds
        for key, words in _BOUNDS.items()
        if key in one and not (key.endswith("aximum") and one[key] >= 10**6)
    ]
    return ", ".join(told)
