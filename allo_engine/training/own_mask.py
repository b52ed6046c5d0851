"""The mask of a stage before `locate`: the weights where the gradient of its own loss is largest at its start.

Why each stage locates its own: the weights that answer well, rewrite well and prefer well are different ones, and the
pairs that `locate` reads do not exist yet. It costs one pass over the stage's data, and no stage more in the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.checkpoints.names import Names
from allo_engine.config import OwnMaskConfig
from allo_engine.masking.gradients import summed_gradients, summing_device
from allo_engine.masking.importance import Gradient
from allo_engine.masking.masks import Positions, positions_of, write_masks
from allo_engine.masking.selection import count_of, thresholds
from allo_engine.model.memory import Kind
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped


class OwnMask:
    """Locates the mask of a stage that trains on `groups` from the model in `folder`; a resumed run finds it again."""

    def __init__(
        self, folder: Path, groups: Sequence[Group], config: OwnMaskConfig, work: Path, report: Report
    ) -> None:
        self._folder, self._groups, self._config = folder, groups, config
        self._work, self._report = work / "mask", report
        self._tokens = sum(group.tokens() for group in groups)

    def __call__(self, model: PreTrainedModel, names: Names) -> Positions:
        """Its positions, in the start model as it is loaded."""
        ranks, own = here(), self._work / "own.safetensors"
        found = ranks.firsts(own)  # ranks sum up in orders of their own: one mask is every rank's
        if not ranks.firsts(own.exists()):
            self._locate(model, names, self._work / "aside")
            (self._work / "aside" / own.name).replace(own)
            ranks.barrier()
        self._report.before = self._tokens
        return positions_of(found, names.sizes)

    def _locate(self, model: PreTrainedModel, names: Names, folder: Path) -> None:
        where = summing_device(model)
        kind: Kind = "gradient" if where == model.device else "gradient_on_host"
        rows = RowBudget(fitting_tokens(self._config, self._folder, kind, loaded=model), self._work, self._report)
        source = Gradient(rows.fit(lambda budget: self._gradients(model, budget, where), self._groups), names)
        rank = count_of(self._config.mask_ratio, sum(source.sizes.values()))
        try:
            found = thresholds(source, [rank], self._stop_if_asked)
        except ValueError as error:
            remedy = "set precision to 'float32', or start from another model"
            raise StageError("diverged", f"The gradient of weight {error}: {remedy}.") from error
        write_masks(source, {"own": rank}, found, folder, self._stop_if_asked)

    def _gradients(self, model: PreTrainedModel, budget: int, where: torch.device) -> dict[str, Tensor]:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done = min(done + count, self._tokens)
            self._report.progress(done, (1 + self._config.n_epochs) * self._tokens)
            self._stop_if_asked(count)

        return summed_gradients(model, self._groups, budget, tick, where)

    def _stop_if_asked(self, _: int) -> None:
        if self._report.stop_requested:
            raise Stopped
