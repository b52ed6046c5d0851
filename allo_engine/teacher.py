"""A teacher that writes corrections, a judge that compares answers: what a job says of them. Free of torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from allo_engine.bases import Count, Positive, Tokens

TEACHER_KEY = "ALLO_TEACHER_API_KEY"
"""The variable of the worker's environment that holds the key of a teacher or a judge."""


class Teacher(BaseModel):
    """A model behind an OpenAI-compatible endpoint, asked at <base_url>/chat/completions.

    Its key is the worker's variable ALLO_TEACHER_API_KEY and stands in no setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    base_url: str = Field(
        pattern=r"^https?://[^/@\s?#]+(/[^@\s?#]*)?$",
        description="As OpenAI's client takes it, 'https://api.openai.com/v1'; the service's operator says which hosts "
        "may be asked.",
    )
    model: str = Field(min_length=1, description="The model's name there.")
    max_tokens: Tokens | None = Field(default=None, description="Tokens of an answer; null: as the endpoint has it.")
    concurrency: int = Field(default=8, ge=1, le=64, description="Questions that are asked at once.")
    timeout_seconds: Positive = Field(default=120.0, description="For how long an answer is waited for.")


class Judge(Teacher):
    """A teacher that says which of two models' answers is the better one."""

    against: str | None = Field(
        default=None,
        max_length=32,
        description="The model that the job's last is compared with, by its name in the report: base, sft, warmup, "
        "forget, of an earlier round improve. null: the warm-up, which is vanilla DPO, where the job has one, else its "
        "first.",
    )
    problems: Count = Field(
        default=200, description="Held-out problems that are judged, the first; two questions each."
    )
