"""A job's settings: what it gives each stage, what it gives all of them, and defaults that depend on the job.

Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from allo_engine.checks import Data, Method, PlanError, did_you_mean, path_of, shown, whole_numbers
from allo_engine.config import CONFIGS, StageConfig

SFT_SHARE = 0.5
"""Of problems that are sampled later (arXiv 2604.13515: preferences on prompts that SFT has not seen gained 10 points,
on those that it has seen none)."""

NLL = 1.0
"""The weight of the chosen response's likelihood in what aligns on pairs of verified answers (arXiv 2404.19733: GSM8K
61.8 to 73.1; tests/benchmarks/study: +2.9, 1.5 … 4.4, in all weights, ten seeds, and worse at no rate). Pairs that
people gave have none: their chosen response is the better of two, and need not be one to imitate."""

RANDOM_RATE = 10.0
"""Improving's default rate in a random mask over that in a located one (tests/benchmarks/study: the best was 12 times
the best of all weights and 17 times that of located ones; LoRA's is told to be 10 times; arXiv 2405.02596)."""


class Settings:
    """The settings of a job's stages. `asked` are those that it names, `left_out` those that it names to have none of
    them, `shorthand` what it gives to every stage.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        stages: Mapping[str, Mapping[str, Any] | None] | None,
        hyperparameters: Mapping[str, Any] | None,
        seed: int,
    ) -> None:
        self.asked = {name: values for name, values in (stages or {}).items() if values is not None}
        self.left_out = (stages or {}).keys() - self.asked.keys()
        self.shorthand = {key: value for key, value in (hyperparameters or {}).items() if value not in ("auto", None)}
        self._method, self._seed = method, seed
        self._samples = method != "supervised" and data.format == "problems"
        self._aligns = "warmup" if method == "dpo" else "improve"
        self._locates = method == "allo" and not data.masks

    def __call__(self, stage: str, field: str) -> object:
        """One setting of a stage."""
        return getattr(self.of(stage), field)

    def of(self, stage: str) -> StageConfig:
        """All settings of a stage. Raises PlanError, naming the field, for what they cannot be."""
        cls = CONFIGS[stage]
        try:
            values = {"seed": self._seed, **self.defaults(stage), **self.asked.get(stage, {})}
            return cls.model_validate_json(json.dumps(whole_numbers(values)), strict=True)
        except ValidationError as error:
            first, *others = error.errors()
            field = ".".join(map(str, path_of(first["loc"])))
            given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {shown(first['input'])})"
            if first["type"] == "extra_forbidden":
                close = did_you_mean(field, cls.model_fields)
                reason = f"is no setting of this stage.{close} It has {', '.join(sorted(cls.model_fields))}"
            else:
                ways = [one for one in others if path_of(one["loc"]) == path_of(first["loc"])]  # of what may be several
                texts = [one["msg"].removeprefix("Input ") for one in (first, *ways)]
                reason = " or ".join(text[0].lower() + text[1:] for text in texts)
            param = f"method.{self._method}.stages.{stage}.{field}"
            never = first["type"] in get_args(ErrorType) and first["loc"][0] in self.asked.get(stage, ())
            code: Literal["invalid_value", "invalid_job"] = "invalid_value" if never else "invalid_job"
            raise PlanError(f"Stage {stage}: {field} {reason}{given}.", param, code) from None

    def defaults(self, stage: str) -> dict[str, Any]:
        """What a stage has where it says nothing itself: the job's own defaults, and above them the shorthand."""
        fields = CONFIGS[stage].model_fields
        above = {**(_located(self.asked, self.shorthand) if stage == "locate" else {}), **self.shorthand}
        own = self._of_this_job(stage)
        values = {**own, **{key: value for key, value in above.items() if key in fields}}
        if "learning_rate_multiplier" in self.shorthand and "learning_rate" in fields:
            rate = own.get("learning_rate", fields["learning_rate"].default)
            values["learning_rate"] = rate * self.shorthand["learning_rate_multiplier"]
        return values

    def _of_this_job(self, stage: str) -> dict[str, Any]:
        """Defaults that are not the class's own."""
        if stage in ("sft", "sample"):
            return self._shares(stage)
        found: dict[str, Any] = {}
        if stage == self._aligns and self._samples and self._given(stage, "trainer") != "trl":
            found["nll"] = NLL
        if stage == "improve" and self._in_random_ones():
            found["learning_rate"] = RANDOM_RATE * CONFIGS[stage].model_fields["learning_rate"].default
        return found

    def _in_random_ones(self) -> bool:
        """Whether improving trains in a random mask of this job."""
        trains = self._given("improve", "train") != "all"
        return self._locates and trains and self("locate", "importance") == "random"

    def _given(self, stage: str, field: str) -> object:
        """What the job says of a setting, if anything."""
        return self.asked.get(stage, {}).get(field, self.shorthand.get(field))

    def _shares(self, stage: str) -> dict[str, Any]:
        """SFT and sampling take different problems of the same file."""
        if not self._samples or "sft" not in self.asked:
            return {}
        if stage == "sft":
            return {"share": SFT_SHARE}
        if stage == "sample":
            share = self("sft", "share")
            return {"skip_share": 0.0 if share == 1 else share}
        return {}


def _located(stages: Container[str], shorthand: Mapping[str, Any]) -> dict[str, Any]:
    """What the shorthand says of `locate` without naming its settings."""
    by_gradient = {"importance": "gradient"} if shorthand.get("train") == "mask" and "warmup" not in stages else {}
    ratios = dict.fromkeys(("forget_ratio", "improve_ratio"), shorthand.get("mask_ratio"))
    return {**by_gradient, **{name: ratio for name, ratio in ratios.items() if ratio is not None}}
