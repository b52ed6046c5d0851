"""What no job may ask for, and what is said then: the checks of a plan, before anything runs. Free of torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

from allo_engine.config import CONFIGS, Judge, LocateConfig, StageConfig, WarmupConfig
from allo_engine.rounds import kind_of

Method = Literal["supervised", "dpo", "allo"]
Format = Literal["problems", "preferences", "chats", "corrections"]

TEMPLATES, PLACE = ("auto", "chat", "alpaca"), "{problem}"
"""Names of templates, and what any other one holds."""

SettingOf = Callable[[str, str], object]
"""The value that a job gives to a stage's field."""


class PlanError(ValueError):
    """A job that cannot be planned. `param` is the path of the field that the user would change, `code` whether its
    value can never be, or does not go with the rest of the job."""

    def __init__(self, message: str, param: str, code: Literal["invalid_value", "invalid_job"] = "invalid_job") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def __reduce__(self) -> tuple[type[PlanError], tuple[str, str, str]]:
        return PlanError, (self.message, self.param, self.code)


@dataclass(frozen=True)
class Data:
    """What the pipeline must know of a job's files. `lines_without_solution` are 1-based; `masks` says that the job
    brings masks which another job made."""

    format: Format
    lines_without_solution: tuple[int, ...] = ()
    validation: Format | None = None
    corrections: bool = False
    masks: bool = False
    retention: Format | None = None


def check_names(
    method: Method, graph: Mapping[str, Any], stages: Mapping[str, Any], shorthand: Mapping[str, Any]
) -> None:
    """Raises PlanError for a stage that the job has not, or a setting that none of its stages has."""
    for name in stages:
        param = f"method.{method}.stages.{name}"
        if kind_of(name) != name and kind_of(name) in CONFIGS:
            raise PlanError(f"All rounds have the same settings: set those of {kind_of(name)}.", param)
        if name not in graph:
            close = "" if name in CONFIGS else did_you_mean(name, CONFIGS)
            raise PlanError(
                f"This job has no stage {name!r}.{close} Of method {method!r}, it runs {', '.join(graph)}.", param
            )
    fields = {field for name in graph for field in CONFIGS[kind_of(name)].model_fields} | {"learning_rate_multiplier"}
    for key in shorthand:
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise PlanError(
                f"No stage of this job has a setting {key!r}.{did_you_mean(key, fields)} Known are {known}.",
                f"method.{method}.hyperparameters.{key}",
            )


def check_multiplier(method: Method, shorthand: Mapping[str, Any]) -> None:
    """Raises PlanError where the multiplier of the learning rates is no number that could be one."""
    multiplier = shorthand.get("learning_rate_multiplier", 1.0)
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not 0 < multiplier <= 1e9:
        raise PlanError(
            f"learning_rate_multiplier must be a number above 0 and at most 1e9 (given: {shown(multiplier)}).",
            f"method.{method}.hyperparameters.learning_rate_multiplier",
        )


def check_templates(method: Method, graph: Iterable[str], setting: SettingOf) -> None:
    """Raises PlanError for a template that has no place for the problem."""
    for stage in dict.fromkeys(map(kind_of, graph)):
        template = str(setting(stage, "template")) if "template" in CONFIGS[stage].model_fields else "auto"
        if template not in TEMPLATES and PLACE not in template:
            raise PlanError(
                f"Stage {stage}: a template is {', '.join(map(repr, TEMPLATES))} or a text that holds {PLACE}, where "
                f"the problem's text goes (given: {shown(template)}).",
                f"method.{method}.stages.{stage}.template",
                "invalid_value",
            )


def check_formats(method: Method, data: Data, with_sft: bool) -> None:
    """Raises PlanError where a file holds what the method, or stage sft, does not train on."""
    takes: dict[str, tuple[Format, ...]] = {
        "supervised": ("problems", "chats"),
        "dpo": ("problems", "preferences"),
        "allo": ("problems", "preferences"),
    }
    if data.format not in takes[method]:
        wanted = " or ".join(takes[method])
        raise PlanError(f"Method {method} trains on {wanted}; the training file holds {data.format}.", "training_file")
    if with_sft and data.format == "preferences":
        raise PlanError(
            "Stage sft trains on problems or chats; the training file holds preferences. Leave stages.sft out, or run "
            "a supervised job first and name its model here.",
            f"method.{method}.stages.sft",
        )
    if data.validation is not None and data.validation != data.format:
        raise PlanError(
            f"The validation file holds {data.validation}, the training file {data.format}: give both the same format.",
            "validation_file",
        )
    if data.retention is not None and (data.validation is None or data.retention == "corrections"):
        wrong = "holds corrections: give problems, preferences or chats" if data.validation else "stands alone"
        raise PlanError(
            f"The retention file {wrong}. It is read beside a validation file, to tell what else the model lost.",
            "retention_file",
        )


def check_left_out(method: Method, graph: Mapping[str, Mapping[str, str]], left_out: Iterable[str]) -> None:
    """Raises PlanError where a stage is to be left out that the job cannot do without, or that there is not."""
    for name in left_out:
        param = f"method.{method}.stages.{name}"
        if name not in CONFIGS:
            raise PlanError(f"There is no stage {name!r} to leave out.{did_you_mean(name, CONFIGS)}", param)
        if name in graph:
            readers = [
                reader
                for reader, inputs in graph.items()
                if reader != "evaluate" and any(source.startswith(f"{name}.") for source in inputs.values())
            ]
            why = f": {' and '.join(readers)} read what it makes" if readers else f": it is what {method} does"
            raise PlanError(f"Stage {name} cannot be left out{why}.", param)


def check_masks(method: Method, stages: Mapping[str, Any], masked: Sequence[str]) -> None:
    """Raises PlanError where nothing trains in the masks that are brought, or where the job locates its own. `masked`
    are the stages that train in masks.
    """
    if method != "allo":
        raise PlanError(f"Method {method} takes over no masks: leave masks out, or use method allo.", "masks")
    if "locate" in stages:
        raise PlanError(
            "The job brings masks, so it has no stage locate to set: leave stages.locate out, or leave masks out to "
            "locate anew.",
            "method.allo.stages.locate",
        )
    if not masked:
        raise PlanError("The job brings masks and trains in none: set train to 'mask', or leave masks out.", "masks")


def check_update(graph: Mapping[str, Any], config: Callable[[str], StageConfig]) -> None:
    """Raises PlanError where a warm-up trains in a mask: it says nothing of the weights outside it."""
    if "locate" not in graph or "updated" not in graph["locate"]:
        return
    warmup, locate = cast(WarmupConfig, config("warmup")), cast(LocateConfig, config("locate"))
    if warmup.train == "all":
        return
    most = max(getattr(locate, f"{stage}_ratio") for stage in ("forget", "improve") if stage in graph)
    if locate.importance == "least" or warmup.mask_ratio < most:
        raise PlanError(
            f"Stage locate looks for the weights that the warm-up moved ({locate.importance}, {most:g} of all), and in "
            f"a mask it moves {warmup.mask_ratio:g} of them: raise warmup.mask_ratio, set warmup.train to 'all', or "
            "set locate.importance to 'gradient'.",
            "method.allo.stages.warmup.mask_ratio" if locate.importance == "update" else _IMPORTANCE,
        )


def check_corrections(data: Data, graph: Mapping[str, Any], setting: SettingOf) -> None:
    """Raises PlanError where corrections are brought and asked of a teacher, too."""
    if data.corrections and "reward_model" in graph and setting("reward_model", "corrections") is not None:
        raise PlanError(
            "The job has a corrections file and a teacher to write corrections: leave one of them out.",
            "method.allo.stages.reward_model.corrections",
        )


def check_judge(method: Method, data: Data, graph: Mapping[str, Any], setting: SettingOf) -> None:
    """Raises PlanError where a judge would have no answers to compare, or no other model's."""
    judge = setting("evaluate", "judge") if "evaluate" in graph else None
    if judge is None:
        return
    assert isinstance(judge, Judge)
    param = f"method.{method}.stages.evaluate.judge"
    if data.validation != "problems":
        raise PlanError(
            f"A judge compares answers to held-out problems; the validation file holds {data.validation}.", param
        )
    models = [name for name in graph["evaluate"] if name not in ("heldout", "retention")][:-1]
    if judge.against not in (None, *models):
        raise PlanError(
            f"The job's last model is compared with no model {judge.against!r}; it has {', '.join(models)}.",
            f"{param}.against",
        )


_IMPORTANCE = "method.allo.stages.locate.importance"


def check_answers(method: Method, data: Data, graph: Mapping[str, Any], setting: SettingOf) -> None:
    """Raises PlanError where held-out chats are to say which checkpoint is best by the answers that it gives."""
    if data.format == "chats" and "sft" in graph and setting("sft", "best_by") == "accuracy":
        raise PlanError(
            "Stage sft cannot tell checkpoints apart by accuracy, as no answers of chats are known: leave best_by out.",
            f"method.{method}.stages.sft.best_by",
        )


def check_solutions(data: Data, graph: Mapping[str, Any]) -> None:
    """Raises PlanError where the rewriter has no solution to learn from."""
    if "reward_model" not in graph or not data.lines_without_solution or data.format == "problems":
        return
    shown = ", ".join(str(line) for line in data.lines_without_solution[:5])
    more = len(data.lines_without_solution) - 5
    raise PlanError(
        f"Stage reward_model needs a reference solution on every line; missing on line {shown}"
        f'{f" and {more} more" if more > 0 else ""}. Add a "solution" field there, or set '
        'stages.token_rewards.source = "log_ratio", which needs none, or use method dpo.',
        "training_file",
    )


_KIND = re.compile(r"(literal|function-[a-z]+|list|tuple|dict|nullable|constrained-[a-z]+)(\[.*\])?|bool|int|float|str")


def path_of(location: Iterable[str | int]) -> list[str | int]:
    """Where pydantic found an error, as whoever wrote the value knows it: without the names of kinds, of a value that
    may be of several, and of a mapping's keys."""
    return [part for part in location if isinstance(part, int) or (part != "[key]" and not _KIND.fullmatch(part))]


def typed(text: str) -> Any:
    """JSON where it is some (1e-5, true, [1]), a number where it looks like one (.5), and otherwise the text itself."""
    for read in (json.loads, float):
        with suppress(ValueError):
            return read(text)
    return text


def whole_numbers(value: object) -> Any:
    """JSON with 3.0 as the whole number that JSON Schema takes it for, wherever it stands."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    return [whole_numbers(item) for item in value] if isinstance(value, list | tuple) else value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'sft'?` where something that is known is nearly the word, else nothing."""
    close = get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """A value that was given, for a message about it: no longer than a line's half."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**60 else f"{'-' * (value < 0)}a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
