"""What of a model a stage trains: all its weights, or the entries of a mask. Either way what it leaves has one form.

A dense stage holds every weight in float32, with gradient and moments; a masked one holds the model in the precision
that it computes in, and its masked entries beside it (see masking/sparse.py). Over several devices either may share out
its weights (see choice.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from allo_engine.bases_trained import TrainingConfig
from allo_engine.checkpoints.delta import Values, merge, write_delta, write_into
from allo_engine.checkpoints.names import Names, names_of, text_weights
from allo_engine.checkpoints.reading import Checkpoint
from allo_engine.masking.entries import overlay, stored_values, within
from allo_engine.masking.masks import Positions
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import dtype_of, empty_model, load_model, save_weights
from allo_engine.model.rows import RowBudget, fitting_rows, give_back_freed_memory
from allo_engine.model.sharing import Rows, in_parts
from allo_engine.ranks import here
from allo_engine.report import Report
from allo_engine.training.choice import stage_of
from allo_engine.training.loop import Trainer


class Mask(Protocol):
    """Where a masked stage trains."""

    @property
    def ratio(self) -> float:
        """Its share of all weights, roughly."""

    def __call__(self, model: Callable[[], PreTrainedModel | Rows], names: Names, /) -> Positions:
        """The positions in the model that the stage starts from, and how its weights are stored; the model itself, over
        all ranks where they share it out, is there to be asked for.
        """


class Trained(Protocol):
    """A model in training. `weights` is how many of its weights are trained."""

    trainer: Trainer
    weights: int

    def changes(self) -> Values:
        """What differs from the folder that the model was loaded from, with the values as they are now."""

    def save(self, out: Path) -> None:
        """A checkpoint in float32 that plain transformers loads."""


class Dense:
    """All weights of a folder's model, with the entries `over` on top."""

    def __init__(self, folder: Path, config: TrainingConfig, report: Report, work: Path, over: Values) -> None:
        self._folder = folder
        self._model, self._names, self.trainer = dense_trainer(folder, config, report, work, over)
        self.weights = sum(self._names.sizes.values())

    def changes(self) -> Values:
        """On the first rank; nothing on the others."""
        changed: Values = {}
        with self.trainer.weights() as weights, Checkpoint(self._folder) as stored:
            if weights is None:
                return changed
            for name, place in self._names.places.items():
                now = place.view(weights(place.weight)).cpu().numpy().reshape(-1)
                before = stored.tensors[name].read(0, stored.tensors[name].size)
                places = np.flatnonzero(now.view(np.int32) != before.view(np.int32))
                changed[name] = places, now[places]
        return changed

    def save(self, out: Path) -> None:
        with self.trainer.weights() as weights:
            if weights:
                save_weights(weights, self._names, self._folder, out)


class Masked:
    """The entries of a mask, in a folder's model with the entries `over` on top."""

    def __init__(
        self, folder: Path, config: TrainingConfig, report: Report, work: Path, mask: Mask, over: Values
    ) -> None:
        self._folder, self._work, self._over = folder, work, over
        parted = stage_of(config, folder, report, mask.ratio) == 3
        dtype = dtype_of(config.precision)
        model = empty_model(folder, dtype) if parted else load_model(folder, dtype)
        names = names_of(model, folder)
        self._model, self._names = model, names
        if not parted:
            write_into(model, over.items(), names)
        # What is shared out to train all of it, to locate a mask, cannot be shared out anew to train in that.
        start_model = (lambda: in_parts(empty_model(folder, dtype), folder, names, over)) if parted else lambda: model
        positions = mask(start_model, names)
        give_back_freed_memory()
        start = within(overlay(stored_values(folder, positions), over), positions)
        self.weights = sum(len(places) for places in positions.values())
        if parted:
            self._sparse, self.trainer = parted_trainer(model, folder, names, start, over, config, report, work)
        else:
            self._sparse, self.trainer = sparse_trainer(model, folder, names, start, config, report, work)

    def changes(self) -> Values:
        return overlay(self._over, self._sparse.trained())

    def put(self, values: Values) -> None:
        """Set the model's weights, as they are computed with, at these entries; what is trained stays as it is."""
        write_into(self._model, values.items(), self._names)

    def save(self, out: Path) -> None:
        if not here().leads:
            return
        delta = self._work / "delta"
        write_delta(self.changes(), self._folder, delta)
        shutil.rmtree(out, ignore_errors=True)  # of an earlier run into the same folder
        merge(self._folder, delta, out)


def dense_trainer(
    folder: Path, config: TrainingConfig, report: Report, work: Path, over: Values
) -> tuple[PreTrainedModel, Names, Trainer]:
    """A folder's model with all its weights as parameters, in float32 whatever it computes in; with the stored entries
    `over` on top.
    """
    zero = stage_of(config, folder, report)
    tokens, choice = fitting_rows(config, folder, "dense", zero=zero)
    rows = RowBudget(tokens, work, report, choice, again=not zero)
    model = load_model(folder, where=torch.device("cpu") if zero == 3 else None)
    names = names_of(model, folder)
    write_into(model, over.items(), names)
    return model, names, Trainer(model, text_weights(model), config, report, work, rows, zero=zero)


def sparse_trainer(
    model: PreTrainedModel,
    folder: Path,
    names: Names,
    start: Values,
    config: TrainingConfig,
    report: Report,
    work: Path,
) -> tuple[SparseModel, Trainer]:
    """A folder's model with the stored entries `start` as parameters, which are float32 whatever the model is."""
    ratio = sum(len(places) for places, _ in start.values()) / model.num_parameters()
    tokens, choice = fitting_rows(config, folder, "sparse", ratio, loaded=model)
    rows = RowBudget(tokens, work, report, choice)
    sparse = SparseModel(model, start, names)
    return sparse, Trainer(model, sparse.values, config, report, work, rows, written=sparse.write_back)


def parted_trainer(
    model: PreTrainedModel,
    folder: Path,
    names: Names,
    start: Values,
    over: Values,
    config: TrainingConfig,
    report: Report,
    work: Path,
) -> tuple[SparseModel, Trainer]:
    """The same of a model without weights, which are then shared out over all ranks, with the entries `over` on top."""
    ratio = sum(len(places) for places, _ in start.values()) / model.num_parameters()
    tokens, choice = fitting_rows(config, folder, "sparse", ratio, zero=3)
    rows = RowBudget(tokens, work, report, choice, again=False)
    sparse = SparseModel(model, start, names)
    way = in_parts(model, folder, names, over, sparse.values.values())
    return sparse, Trainer(model, sparse.values, config, report, work, rows, written=sparse.write_back, way=way)


def trained(
    folder: Path, config: TrainingConfig, report: Report, work: Path, mask: Mask, over: Values | None = None
) -> Trained:
    """A folder's model, with the entries `over` on top, in training as the stage's settings have it.

    `mask` is asked only where they say train 'mask'.
    """
    if config.train == "all":
        return Dense(folder, config, report, work, over or {})
    return Masked(folder, config, report, work, mask, over or {})
