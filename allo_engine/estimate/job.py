"""A job as job.json names it, for counting what it will take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from allo_engine.estimate.loads import Place
from allo_engine.model.shape import Shape, shape_of
from allo_engine.needs import known
from allo_engine.pipeline import METHODS, Method

FILES = ("training_file", "validation_file", "corrections_file", "retention_file")

NO_JOB = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What `Job.read` raises."""


@dataclass(frozen=True)
class Job:
    """A job as job.json names it. Of a model whose shape is in `shapes`, by "model" or "rewriter", no weights need be
    there, and one that is in `packs` is not tried; `places` are the kinds of workers that it is counted for, none: this
    machine.
    """

    method: Method
    model: Path
    files: Mapping[str, Path]
    stages: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    masks: bool = False
    rewriter: Path | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    packs: Mapping[str, bool] = field(default_factory=dict)
    places: tuple[Place, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Job:
        """Raises NO_JOB where the file does not say what a job needs."""
        given = json.loads(path.read_text(encoding="utf-8"))
        if given["method"] not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}")
        inputs = {name: Path(where) for name, where in given["inputs"].items()}
        return cls(
            cast(Method, given["method"]),
            inputs["model"],
            {"training_file": inputs["training_file"], **{name: inputs[name] for name in FILES if name in inputs}},
            given.get("stages") or {},
            given.get("hyperparameters") or {},
            given.get("seed") or 0,
            "masks" in inputs,
            inputs.get("rewriter"),
            {name: Shape(**known(Shape, shape)) for name, shape in (given.get("shapes") or {}).items()},
            {name: bool(packs) for name, packs in (given.get("packs") or {}).items()},
            tuple(Place(**place) for place in given.get("places") or ()),
        )

    def shape(self, name: str, folder: Path) -> Shape:
        """A model's shape: the one that was named, else that of its folder."""
        return self.shapes[name] if name in self.shapes else shape_of(folder)
