"""The best checkpoint and an early stop, by a share of a stage's items that it does not train on.

The share is one of contents: what is held out stays held out whatever else a file holds. The loss on it is the stage's
own; a measure, where there is one, comes before the loss. The model that training starts from is validated, too: where
no step betters it, it is the result. What a validation finds stands in the checkpoints for resuming, so that a run that
was cut goes on as the run that was not, and all ranks find the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from allo_engine.bases_trained import TrainingConfig
from allo_engine.data.shares import within
from allo_engine.model.logps import PerToken
from allo_engine.model.sequences import Group
from allo_engine.report import Report, StageError
from allo_engine.training.averaging import points
from allo_engine.training.figures import Readings
from allo_engine.training.objectives import Objective
from allo_engine.training.resuming import Checkpoints, State, Sums, Values

Sides = tuple[list[Group], list[Group]]
"""What is trained on, and what is held out."""

_COURSE = "validation"
"""What the course is called among a checkpoint's figures."""


def parted(groups: Sequence[Group], share: float) -> Sides:
    """Groups of one prompt stand on one side."""
    sides: Sides = [], []
    for group in groups:
        sides[within(f"held out {list(group.prompt)}", share)].append(group)
    return sides


def held_out(groups: Sequence[Group], config: TrainingConfig) -> Sides:
    """The same as a stage's settings have it. Raises StageError where a side that is asked for is empty."""
    training, held = parted(groups, config.validation_share)
    if config.validation_share and not (training and held):
        raise StageError(
            "nothing_to_validate_on",
            f"validation_share {config.validation_share:g} leaves {len(training)} problems to train on and {len(held)} "
            "to validate on: change it, or give more.",
        )
    return training, held


@dataclass(frozen=True)
class Measure:
    """A share, the better the higher, by which checkpoints are held against each other: a figure of the objective's by
    its name, or under that name what `asked` finds of the model as it stands."""

    name: str
    asked: Callable[[], float] | None = None


@dataclass(frozen=True)
class Course:
    """How far a validation is: the step behind which it was last taken, the best step with its loss and measure, and
    how many were no better since."""

    at: float = -1
    best: float = -1
    loss: float = math.inf
    waited: float = 0
    measured: float = -1

    def standing(self) -> tuple[float, float]:
        return -self.measured, self.loss


class Validation:
    """Of a model in training, by the items that are held out; where none are, there is none. Without a `measure` the
    loss alone says which model is best.

    `scored` gives logπ of their responses as the model stands. The whole training has `steps`. The best values of
    `state` are kept in `work`.
    """

    def __init__(
        self,
        held: Sequence[Group],
        objective: Objective,
        scored: Callable[[], PerToken],
        config: TrainingConfig,
        steps: int,
        state: State,
        work: Path,
        report: Report,
        measure: Measure | None = None,
    ) -> None:
        self._held, self._objective, self._scored, self._config = held, objective, scored, config
        self._measure, self._names = measure, (measure.name,) if measure else ()
        self._steps, self._points = steps, frozenset([0, *points(config, steps)])
        self._best, self._report, self._course = Checkpoints(work / "best", Values(state), report), report, Course()

    def due(self, step: int) -> bool:
        """Whether it is to be taken behind a step; behind step 0, of the model that training starts from."""
        return bool(self._held) and step in self._points and step > self._course.at

    @property
    def over(self) -> bool:
        """Whether as many as the patience has were no better than the best."""
        patience = self._config.patience
        return patience is not None and self._course.waited >= patience

    def take(self, step: int) -> tuple[dict[str, float], bool]:
        """The figures of the held-out items that are finite numbers; and whether the model is the best so far, and was
        kept."""
        figures, before = self.figures(), self._course
        better = self.standing(figures) < before.standing()
        if better:
            self._best.save(step, {})
            self._course = Course(step, step, figures["loss"], measured=self._measured(figures))
        else:
            self._course = replace(before, at=step, waited=before.waited + 1)
        return {f"validation_{name}": value for name, value in figures.items()}, better

    def standing(self, figures: Mapping[str, float]) -> tuple[float, float]:
        """Of two models, the one with the lesser is better by its figures; of one without a finite loss it is that of
        none."""
        if "loss" not in figures:
            return 1, math.inf
        return -self._measured(figures), figures["loss"]

    def _measured(self, figures: Mapping[str, float]) -> float:
        return sum(figures.get(name, 0.0) for name in self._names)

    def figures(self) -> dict[str, float]:
        """Those of the held-out items that are finite numbers, of the model as it stands."""
        logps, readings = self._scored(), Readings()
        for group in self._held:
            own, *given = (
                {index: values[group.key, index] for index in group.responses}
                for values in (logps, *self._objective.given)
            )
            loss, figures = self._objective(group, own, given)
            readings.add({"loss": (loss, self._objective.weight(group)), **figures})
        found = readings.read().means()
        if self._measure and self._measure.asked:
            found[self._measure.name] = self._measure.asked()
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def sums(self) -> dict[str, list[float]]:
        """The course, to stand among a checkpoint's figures."""
        return {_COURSE: list(astuple(self._course))} if self._held else {}

    def resumed(self, sums: Sums) -> Sums:
        """A checkpoint's other figures, having taken the course from them; without one it begins."""
        self._course = Course(*sums.get(_COURSE, ()))
        return {name: figures for name, figures in sums.items() if name != _COURSE}

    def settle(self, step: int, averaged: int = 0) -> dict[str, float]:
        """Behind the last step that was taken, have the model as it was at its best, where that is asked for: what is
        told of it. The model may stand as the mean of so many checkpoints, and remains so where that is better yet."""
        course, steps, best = self._course, self._steps, int(self._course.best)
        if not self._held:
            return {"averaged": averaged} if averaged else {}
        mean = self.figures() if averaged else {}
        told = {f"average_validation_{name}": mean[name] for name in ("loss", *self._names) if name in mean}
        if best < 0:
            self._report.message("No validation gave a finite loss: the last step is the result.", "warn")
            return {"result_step": step, **({"averaged": averaged} if averaged else {})}
        if step < steps:
            self._report.message(
                f"Stopped behind step {step} of {steps}: the last {course.waited:g} validations were no better than "
                f"that behind step {course.best:g}.",
                data={"step": step, "steps": steps},
            )
        told |= {"best_step": best, "best_validation_loss": course.loss}
        told |= {f"best_validation_{name}": course.measured for name in self._names}
        if averaged and (self._config.keep == "last" or self.standing(mean) < course.standing()):
            self._report.message(f"The result is the mean of the last {averaged} checkpoints.", data=told)
            return {"result_step": step, "averaged": averaged, **told}
        is_here = best == step and not averaged
        kept = self._config.keep == "best" and (is_here or self._best.load(best) is not None)
        if kept:
            why = f"loss of {course.loss:.4f} on held-out items is the least"
            for name in self._names:
                why = f"{name.replace('_', ' ')} of {100 * course.measured:.1f} % on held-out items is the highest"
            which, level = f"behind step {best} of {steps}, whose {why}.", "info"
            if not best:
                which, level = f"that training started from: its {why}. Try a lower rate, or more data.", "warn"
            self._report.message(
                f"The result is the model {which}",
                level,
                {"step": best, "steps": steps, "validation_loss": course.loss}
                | {f"validation_{name}": course.measured for name in self._names},
            )
        return {"result_step": best if kept else step, **told}
