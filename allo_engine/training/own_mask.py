"""The mask of a stage before `locate`: the weights where the gradient of its own loss is largest at its start.

Why each stage locates its own: the weights that answer well, rewrite well and prefer well are different ones, and the
pairs that `locate` reads do not exist yet. It costs one pass over the stage's data, and no stage more in the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from allo_engine.bases_trained import OwnMaskConfig, PairLossConfig
from allo_engine.checkpoints.names import Names
from allo_engine.masking.gradients import fitted_gradients
from allo_engine.masking.importance import Gradient
from allo_engine.masking.masks import Positions, positions_of, write_masks
from allo_engine.masking.selection import count_of, thresholds
from allo_engine.model.sequences import Group
from allo_engine.model.sharing import Rows
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped, Tick


class OwnMask:
    """Locates the mask of a stage that trains on `groups` from the model in `folder`; a resumed run finds it again."""

    def __init__(
        self, folder: Path, groups: Sequence[Group], config: OwnMaskConfig, work: Path, report: Report
    ) -> None:
        self._folder, self._groups, self._config = folder, groups, config
        self._work, self._report = work / "mask", report
        self._tokens = sum(group.tokens() for group in groups)

    @property
    def ratio(self) -> float:
        return self._config.mask_ratio

    def __call__(self, model: Callable[[], PreTrainedModel | Rows], names: Names) -> Positions:
        """Its positions, in the start model."""
        ranks, own = here(), self._work / "own.safetensors"
        found = ranks.firsts(own)
        if not ranks.firsts(own.exists()):
            self._locate(model(), names, self._work / "aside")
            if ranks.leads:
                (self._work / "aside" / own.name).replace(own)
            ranks.barrier()
        self._report.before = self._tokens
        return positions_of(found, names.sizes)

    def _locate(self, model: PreTrainedModel | Rows, names: Names, folder: Path) -> None:
        of = (self._folder, self._groups, self._config, self._work, self._report)
        nll = 2 * config.nll / config.beta if isinstance(config := self._config, PairLossConfig) else 0.0
        source = Gradient(fitted_gradients(model, *of, self._told(here().tally()), nll), names)
        rank = count_of(self._config.mask_ratio, sum(source.sizes.values()))
        try:
            found = thresholds(source, [rank], self._stop_if_asked)
        except ValueError as error:
            remedy = "set precision to 'float32', or start from another model"
            raise StageError("diverged", f"The gradient of weight {error}: {remedy}.") from error
        write_masks(source, {"own": rank}, found, folder, self._stop_if_asked)

    def _told(self, tally: Callable[[int], int]) -> Tick:
        def tick(count: int) -> None:
            done = min(tally(count), self._tokens)
            self._report.progress(done, (1 + self._config.n_epochs) * self._tokens)
            self._stop_if_asked(count)

        return tick

    def _stop_if_asked(self, _: int) -> None:
        if self._report.stop_requested:
            raise Stopped
