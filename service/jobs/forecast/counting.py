"""What a job will compute, counted by the engine in a process of its own: without weights, once, and kept in memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

from allo_engine.estimate.loads import Place, Work
from service.children import ChildFailed, told
from service.jobs.errors import InvalidRequest, Unavailable
from service.jobs.forecast.errands import Errands, Scratch
from service.jobs.submission import Admitted, settings_of, shape_of

COMMAND = (sys.executable, "-m", "allo_engine.estimate", "count")
SECONDS, MEMORY = 120.0, 4 * 2**30
"""What one count may take."""

REFUSED = 3
"""The exit status of a child that found that the job could not run."""

WEIGHTS = ".safetensors"

LEARNING_ONLY = frozenset(
    {"seed", "learning_rate", "warmup_ratio", "schedule", "max_grad_norm", "weight_decay"}
    | {"beta", "beta1", "beta2", "epsilon"}
)
"""Settings of stages that change what is learned, and not what is computed: jobs that differ in these alone are counted
once."""

Works = Mapping[Place, Work]
"""A job's work at each kind of worker."""


@dataclass(frozen=True)
class Question:
    """What is counted, by content: the job as the engine reads it, the files (each in a folder of its input's name)
    and the kinds of workers."""

    owner: str
    job: str
    files: tuple[tuple[str, str], ...]
    places: tuple[Place, ...]


def question(admitted: Admitted, places: Iterable[Place]) -> Question | None:
    """What to ask of a job; None where its model has no known shape, so that nobody can count it."""
    given = {"model": admitted.model, "rewriter": admitted.rewriter}
    models = {name: model for name, model in given.items() if model is not None}
    shapes = {name: shape_of(model) for name, model in models.items()}
    if not all(shapes.values()):
        return None
    job = {
        "method": admitted.new.method,
        "stages": {name: _counted(values) for name, values in settings_of(admitted.new, admitted.planned).items()},
        "shapes": shapes,
        "packs": {name: found["packs"] for name, model in models.items() if "packs" in (found := model.verdict or {})},
        "inputs": {name: name for name in admitted.sources},
    }
    files = [
        (f"{name}/{path}", sha256)
        for name, found in admitted.sources.items()
        for path, sha256, _ in found
        if name != "masks" and not path.endswith(WEIGHTS)
    ]
    wanted = sorted(set(places), key=repr)
    return Question(admitted.owner, json.dumps(job, sort_keys=True), tuple(sorted(files)), tuple(wanted))


def _counted(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of a stage; None where it is left out."""
    return None if settings is None else {key: value for key, value in settings.items() if key not in LEARNING_ONLY}


class Counts:
    """Counts jobs in the background of this process, which the engine's `command` does not outlive."""

    def __init__(self, scratch: Scratch, command: Sequence[str] = COMMAND, seconds: float = SECONDS) -> None:
        self._scratch, self._command, self._seconds = scratch, command, seconds
        self._errands: Errands[Question, Works] = Errands(self._counted)

    def ask(self, asked: Question) -> Future[Works]:
        """The work, at once where it was counted before. Raises TooMany; what comes of it may be InvalidRequest, where
        the job would fail, or Unavailable."""
        return self._errands.ask(asked)

    def _counted(self, asked: Question) -> Works:
        with self._scratch.holding(asked.files) as folder:
            job: dict[str, Any] = json.loads(asked.job)
            inputs = {name: str(folder / name) for name in job["inputs"]}
            places = [asdict(place) for place in asked.places]
            path = folder / "job.json"
            path.write_text(json.dumps({**job, "inputs": inputs, "places": places}))
            try:
                options = ("--parent", str(os.getpid()), "--config", str(path))
                said = told([*self._command, *options], self._seconds, MEMORY)
            except ChildFailed as failed:
                raise _refusal(failed) from None
        works = map(Work.read, said["works"])
        return {place: replace(work, place=place) for place, work in zip(asked.places, works, strict=True)}


def _refusal(failed: ChildFailed) -> InvalidRequest | Unavailable:
    if failed.status == REFUSED:
        return InvalidRequest(failed.words[:500], None, "no_estimate")
    return Unavailable(f"The process that counts what the job computes gave no answer: {failed.words:.300}")
