"""A job's settings: what it gives each stage, what it gives all of them, and defaults that depend on the job.

Free of torch.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from pydantic import ValidationError

from allo_engine.checks import Data, Method, PlanError, did_you_mean, shown
from allo_engine.config import CONFIGS, StageConfig

SFT_SHARE = 0.5
"""Of problems that are sampled later (arXiv 2604.13515: preferences on prompts that SFT has not seen gained 10 points,
on those that it has seen none)."""


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

    def __call__(self, stage: str, field: str) -> object:
        """One setting of a stage."""
        return getattr(self.of(stage), field)

    def of(self, stage: str) -> StageConfig:
        """All settings of a stage. Raises PlanError, naming the field, for what they cannot be."""
        cls = CONFIGS[stage]
        try:
            return cls.model_validate({"seed": self._seed, **self._defaults(stage), **self.asked.get(stage, {})})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {shown(first['input'])})"
            if first["type"] == "extra_forbidden":
                close = did_you_mean(field, cls.model_fields)
                reason = f"is no setting of this stage.{close} It has {', '.join(sorted(cls.model_fields))}"
            else:
                text = first["msg"].removeprefix("Input ")
                reason = text[0].lower() + text[1:]
            param = f"method.{self._method}.stages.{stage}.{field}"
            raise PlanError(f"Stage {stage}: {field} {reason}{given}.", param) from None

    def _defaults(self, stage: str) -> dict[str, Any]:
        """What a stage has where it says nothing itself: the job's own defaults, and above them the shorthand."""
        fields = CONFIGS[stage].model_fields
        above = {**(_located(self.asked, self.shorthand) if stage == "locate" else {}), **self.shorthand}
        values = {**self._of_this_job(stage), **{key: value for key, value in above.items() if key in fields}}
        if "learning_rate_multiplier" in self.shorthand and "learning_rate" in fields:
            values["learning_rate"] = fields["learning_rate"].default * self.shorthand["learning_rate_multiplier"]
        return values

    def _of_this_job(self, stage: str) -> dict[str, Any]:
        """Defaults that are not the class's own: SFT and sampling take different problems of the same file."""
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
