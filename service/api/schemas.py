"""What a client may send. Unknown fields are refused by name; a stage's settings the engine's own class checks."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from allo_engine.pipeline import whole_numbers
from service.jobs.lifecycle import Priority
from service.jobs.submission import NewJob
from service.jobs.sweeping.points import MOST_POINTS

MAX_DEPTH = 32
"""Objects and lists inside one another in a body: no setting needs more."""


def _plain(value: Any, depth: int = 0) -> Any:
    """Any JSON that both databases and every reader of it can hold: no NUL, no number that is no number or too large
    for 64 bits, nothing endlessly nested."""
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text may not hold a NUL character")
        value.encode()  # a lone surrogate raises a ValueError of its own
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("whole numbers must fit 64 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            _plain(key), _plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _plain(item, depth + 1)
    return value


def _plain_value(value: Any) -> Any:
    return _plain(value)


_NAME_PART = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _name_part(value: str) -> str:
    if not re.fullmatch(_NAME_PART, value):
        raise ValueError(
            "takes letters, digits, '.', '_' and '-', 64 at most, of which the first is a letter or a digit"
        )
    return value


def only_its_own(*kinds: str, needed: bool = False) -> ConfigDict:
    """For the document, of an object that names its kind in `type`: of the fields that are called as the kinds are, it
    has that kind's alone; `needed` where it may not be left out."""
    ways: Any = []
    for kind in kinds:
        fields: dict[str, Any] = {other: {"type": "null"} for other in kinds if other != kind}
        own = {kind: {"type": "object"}} if needed else {}
        ways.append({"required": list(own), "properties": {"type": {"const": kind}, **fields, **own}})
    return ConfigDict(json_schema_extra={"oneOf": ways})


PLAIN = AfterValidator(_plain_value)
Text = Annotated[str, PLAIN]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64), PLAIN]
ModelName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    PLAIN,
    Field(json_schema_extra={"pattern": r"^[^/.~\x00][^\x00]*$", "not": {"pattern": "://"}}),
]
"""Neither a path nor a URL: what models there are, a submit knows."""

Settings = Annotated[dict[str, Any], PLAIN]
Suffix = Annotated[str, AfterValidator(_name_part), Field(json_schema_extra={"pattern": _NAME_PART})]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64), PLAIN],
        Annotated[str, StringConstraints(max_length=512), PLAIN],
    ],
    Field(max_length=16),
]


Swept = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=128), PLAIN],
        Annotated[list[Any], Field(min_length=1, max_length=MOST_POINTS)],
    ],
    Field(min_length=1, max_length=16),
    PLAIN,
]


RunTime = Annotated[int, Field(ge=1, le=10 * 365 * 86_400)]
"""Seconds that a job's stages may run for."""


class Body(BaseModel):
    """A request body: strict about names and about kinds of values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        return whole_numbers(given)


class MethodSettings(Body):
    """`hyperparameters` are a shorthand for every stage; `stages.<stage>` are one stage's own settings, and null leaves
    the stage out."""

    hyperparameters: Settings | None = None
    stages: dict[str, Settings | None] | None = None


class Method(Body):
    """The method's type, and its settings under its own name."""

    model_config = only_its_own("supervised", "dpo", "allo")

    type: Literal["supervised", "dpo", "allo"]
    supervised: MethodSettings | None = None
    dpo: MethodSettings | None = None
    allo: MethodSettings | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> Method:
        for name in ("supervised", "dpo", "allo"):
            if name != self.type and getattr(self, name) is not None:
                raise ValueError(f"the type is {self.type}, so the settings belong under {self.type!r}, not {name!r}")
        return self

    def settings(self) -> MethodSettings:
        """The settings of the type."""
        found: MethodSettings | None = getattr(self, self.type)
        return found or MethodSettings()


Named = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}$")]


class MLflow(Body):
    """A run of an experiment. `tracking_uri` is one of those that the operator allows, of which the first is taken."""

    experiment: Annotated[str, StringConstraints(pattern=r"^/?[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,250}$")]
    run_name: Named | None = None
    tracking_uri: Annotated[str, StringConstraints(max_length=512), PLAIN] | None = None


class WandB(Body):
    """A run of a project of Weights & Biases, as OpenAI has it."""

    project: Named
    name: Named | None = None
    entity: Named | None = None
    tags: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=64), PLAIN]], Field(max_length=16)
    ] = []


class Trackio(Body):
    """A run of a project of trackio. `space` is one of those that the operator allows, of which the first is taken."""

    project: Named
    name: Named | None = None
    space: Annotated[str, StringConstraints(max_length=512), PLAIN] | None = None


class Integration(Body):
    """A tracker that is told of the job: its type, and its settings under its own name."""

    model_config = only_its_own("mlflow", "wandb", "trackio", needed=True)

    type: Literal["mlflow", "wandb", "trackio"]
    mlflow: MLflow | None = None
    wandb: WandB | None = None
    trackio: Trackio | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> Integration:
        given = [name for name in ("mlflow", "wandb", "trackio") if getattr(self, name) is not None]
        if given != [self.type]:
            raise ValueError(f"the type is {self.type}, so its settings, and no others, belong under {self.type!r}")
        return self


class Prioritise(Body):
    """POST /v1/fine_tuning/jobs/{id}/priority. `high` takes a key with scope admin."""

    priority: Literal["low", "normal", "high"]

    def meant(self) -> Priority:
        return Priority.of(self.priority)


class Retry(Body):
    """POST /v1/fine_tuning/jobs/{id}/retry; the body may be left out. `from` names a stage: it and all that read what
    it makes are computed anew. `max_seconds` is the job's limit from now on."""

    from_: Id | None = Field(default=None, alias="from")
    max_seconds: RunTime | None = None


class CreateJob(Body):
    """POST /v1/fine_tuning/jobs. `corrections_file`, `retention_file` and `masks` are our additions; they arrive
    through the client's extra_body. `masks` is the id of an earlier job, or of any file of its masks: the job trains in
    those, of a job that located anew in each round in the last ones, and locates none of its own. `retention_file` is a
    second held-out file, about something else than the job trains on: it tells what the model lost of that. Of jobs
    that wait, those of a higher `priority` go first; `high` takes a key with scope admin. A job whose stages have run
    for `max_seconds`, together and whatever the time of day, has failed of its deadline; what they made is kept."""

    model: ModelName
    training_file: Id
    validation_file: Id | None = None
    corrections_file: Id | None = None
    retention_file: Id | None = None
    masks: Id | None = None
    method: Method | None = None
    hyperparameters: Settings | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Field(max_length=3)] | None = None
    priority: Literal["low", "normal", "high"] | None = None
    max_seconds: RunTime | None = None

    def asked(self) -> NewJob:
        """The job in the domain's terms. Without a method it is supervised, as OpenAI has it."""
        method = self.method or Method(type="supervised")
        settings = method.settings()
        return NewJob(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            corrections_file=self.corrections_file,
            retention_file=self.retention_file,
            masks=self.masks,
            method=method.type,
            stages=settings.stages or {},
            hyperparameters={**(self.hyperparameters or {}), **(settings.hyperparameters or {})},
            seed=self.seed or 0,
            suffix=self.suffix,
            metadata=self.metadata,
            max_seconds=self.max_seconds,
            priority=Priority.of(self.priority or "normal"),
            integrations=[one.model_dump(mode="json", exclude_none=True) for one in self.integrations or ()],
        )


class CreateSweep(CreateJob):
    """POST /v1/fine_tuning/sweeps: a job, and in `sweep` the values of each setting that is swept, in place of the
    job's own: `STAGE.FIELD`, the name of a hyperparameter, or `seed`. Their combinations are the points."""

    sweep: Swept
