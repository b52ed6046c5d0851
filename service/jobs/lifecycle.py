"""What a job and a stage can be, and how each may change. Pure data: every change of a status is checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TypeVar

MAX_ATTEMPTS = 3
"""Attempts of a stage that end badly, one after the other, without a checkpoint further than any before. One that was
drained does not count; a crash, a lost worker and a retryable failure do."""


class Priority(IntEnum):
    """How a job stands to those of others. Of equal ones, owners have fair shares (see `worker.sharing`)."""

    LOW = -1
    NORMAL = 0
    HIGH = 1

    @property
    def word(self) -> str:
        """As people and requests have it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Priority:
        """The priority of that word. Raises KeyError."""
        return {one.word: one for one in cls}[word]


class JobStatus(StrEnum):
    """A job, as its owner sees it."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Nothing more of it starts; what still runs of it is stopping at a checkpoint."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StageStatus(StrEnum):
    """A stage of a job."""

    WAITING = "waiting"
    """A stage that it needs has not finished, or its job is paused."""
    READY = "ready"
    """It could run."""
    DISPATCHED = "dispatched"
    """A worker was rung for it."""
    RUNNING = "running"
    """A worker claimed it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


Status = TypeVar("Status", JobStatus, StageStatus)

J, S = JobStatus, StageStatus

JOB_MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    J.QUEUED: frozenset({J.RUNNING, J.PAUSED, J.SUCCEEDED, J.FAILED, J.CANCELLED}),  # succeeded: every stage was reused
    J.RUNNING: frozenset({J.PAUSED, J.SUCCEEDED, J.FAILED, J.CANCELLED}),
    J.PAUSED: frozenset({J.QUEUED, J.RUNNING, J.SUCCEEDED, J.FAILED, J.CANCELLED}),  # its last stage ended all the same
    J.SUCCEEDED: frozenset(),
    J.FAILED: frozenset({J.QUEUED}),  # retry
    J.CANCELLED: frozenset({J.QUEUED}),  # retry
}

STAGE_MOVES: Mapping[StageStatus, frozenset[StageStatus]] = {
    S.WAITING: frozenset({S.READY, S.SUCCEEDED, S.CANCELLED}),  # succeeded: reused
    S.READY: frozenset({S.DISPATCHED, S.WAITING, S.SUCCEEDED, S.CANCELLED}),  # waiting, here and below: paused
    S.DISPATCHED: frozenset({S.DISPATCHED, S.RUNNING, S.WAITING, S.CANCELLED}),  # dispatched: rung again
    S.RUNNING: frozenset({S.READY, S.WAITING, S.SUCCEEDED, S.FAILED, S.CANCELLED}),  # ready: another attempt
    S.SUCCEEDED: frozenset({S.WAITING}),  # what it made is damaged and waited for; or retry from it, or what it needs
    S.FAILED: frozenset({S.WAITING}),  # retry
    S.CANCELLED: frozenset({S.WAITING}),  # retry
}

JOB_ENDED = frozenset({J.SUCCEEDED, J.FAILED, J.CANCELLED})
STAGE_ENDED = frozenset({S.SUCCEEDED, S.FAILED, S.CANCELLED})


class IllegalMove(Exception):
    """A change of status that the lifecycle does not have."""

    def __init__(self, current: str, target: str) -> None:
        super().__init__(f"{current} cannot become {target}")
        self.current, self.target = current, target

    def __reduce__(self) -> tuple[type[IllegalMove], tuple[str, str]]:
        return IllegalMove, (self.current, self.target)


def move(current: Status, target: Status) -> Status:
    """`target`, where `current` may become it; raises IllegalMove where not."""
    legal = JOB_MOVES[current] if isinstance(current, JobStatus) else STAGE_MOVES[current]
    if target not in legal:
        raise IllegalMove(current, target)
    return target


def stage_sources(target: StageStatus) -> tuple[StageStatus, ...]:
    """The statuses from which a stage may become `target`: the guard of a compare-and-set."""
    return tuple(status for status, targets in STAGE_MOVES.items() if target in targets)


def another_attempt(fruitless: int) -> bool:
    """Whether a stage gets another attempt after so many that ended badly since its last progress."""
    return fruitless < MAX_ATTEMPTS
