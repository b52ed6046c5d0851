"""In which settings several jobs differ. Pure functions of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.tables import Job

LEFT_OUT = "left out"
"""What stands for a stage's settings in a job that has no such stage."""


@dataclass(frozen=True)
class Difference:
    """A setting, `stage.field` where it is a stage's, with its value in each job."""

    name: str
    values: Sequence[Any]


def differences(jobs: Sequence[Job]) -> list[Difference]:
    """The settings that are not the same in all of the jobs. A stage that one of them leaves out is told once, and
    compared among the others."""
    found = [Difference(name, [getattr(job, name) for job in jobs]) for name in _OWN]
    found.insert(0, Difference("method", [job.method["type"] for job in jobs]))
    settings = [_without_its_seed(job) for job in jobs]
    for stage in _names(settings):
        found.append(Difference(stage, ["there" if stage in own else LEFT_OUT for own in settings]))
        present = [own[stage] for own in settings if stage in own]
        for field in _names(present):
            values = [own[stage].get(field) if stage in own else LEFT_OUT for own in settings]
            if _differ([one.get(field) for one in present]):
                found.append(Difference(f"{stage}.{field}", values))
    return [one for one in found if _differ(one.values)]


_OWN = ("model", "training_file", "validation_file", "corrections_file", "retention_file", "masks", "seed")


def _without_its_seed(job: Job) -> dict[str, dict[str, Any]]:
    """The stages' settings, but for a seed that is the job's."""
    own = job.method["stages"].items()
    return {name: {k: v for k, v in found.items() if (k, v) != ("seed", job.seed)} for name, found in own}


def _names(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all, in the order in which they are first met."""
    return list(dict.fromkeys(name for one in given for name in one))


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values[1:])
