"""What a job says of lm-evaluation-harness, and where a worker keeps the tasks that jobs may name. Free of torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from allo_engine.bases import Count

HARNESS_TASKS = "ALLO_HARNESS_TASKS"
"""The variable of the worker's environment that names the folder of its tasks. A task's file may hold code, and its
templates run as such: only the operator says which there are."""

TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class Harness(BaseModel):
    """Tasks of lm-evaluation-harness, by the names that their files in the worker's folder have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[TaskName, ...] = Field(min_length=1, max_length=64, description="Tasks, groups or tags of them.")
    limit: Count | None = Field(default=None, description="Cases of each task, the first; null: all.")
    fewshot: int | None = Field(
        default=None, ge=0, le=100, description="Solved cases before each question; null: as the task has it."
    )
    chat_template: bool = Field(
        default=False, description="Whether questions are put in the model's chat template, or as plain text."
    )
