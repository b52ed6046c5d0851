"""What the models of a job are put to, and what of it is common to all formats."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import apply_delta
from allo_engine.checkpoints.folder import digest_of, fingerprint
from allo_engine.configs.evaluate import EvaluateConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.statistics import wilson
from allo_engine.model.loading import dtype_of, load_model, plain_model
from allo_engine.model.logps import everyones, score
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group
from allo_engine.report import Report, Tick

Line = dict[str, Any]
"""What is found of one model."""


@dataclass(frozen=True)
class Candidate:
    """A model by its name: its folder, and the sparse checkpoint whose values it takes, if any."""

    name: str
    folder: Path
    delta: Path | None = None

    def weights(self) -> str:
        """A name for the weights, and for how they are read."""
        folders = [self.folder] if self.delta is None else [self.folder, self.delta]
        configuration = digest_of(self.folder / "config.json").hex()
        return "+".join([*map(fingerprint, folders), configuration])

    def load(self, config: EvaluateConfig) -> PreTrainedModel:
        return self._with_delta(load_model(self.folder, dtype_of(config.precision)))

    def plain(self, config: EvaluateConfig) -> PreTrainedModel:
        """As transformers has it: rows are padded, not packed."""
        return self._with_delta(plain_model(self.folder, dtype_of(config.precision)))

    def _with_delta(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.delta is not None:
            apply_delta(model, self.delta, self.folder)
        return model


@dataclass(frozen=True)
class Bench:
    """A held-out file and how it is read. `start` is the model that alignment started from; `cache` the folder that the
    stages on a machine share, `work` a folder to keep in what a resumed run need not do again, `kept` what the names of
    its files begin with.
    """

    config: EvaluateConfig
    heldout: Path
    base: Path
    start: Path
    encoder: Encoder
    cache: Path
    work: Path
    report: Report
    kept: str = ""

    def rows(self) -> RowBudget:
        """For all models, in a resumed run too: equal rows give equal bits."""
        return RowBudget(fitting_tokens(self.config, self.base, "forward"), self.work, self.report)


@dataclass(frozen=True)
class Evaluation:
    """`size` is how much work one model is, `cases` names each case by its content, in the order of a line's lists."""

    size: int
    cases: list[str]
    of: Callable[[Candidate, Tick], Line]


def names(contents: Iterable[Any]) -> list[str]:
    """Each case by a digest of its content, so that reports of other jobs can be held against it, case by case."""
    met: Counter[str] = Counter()
    found = []
    for content in contents:
        text = json.dumps(content, ensure_ascii=False)
        met[text] += 1
        found.append(hashlib.sha256(f"{met[text]} {text}".encode()).hexdigest()[:16])
    return found


def share(name: str, right: float, total: int) -> Line:
    """A share with Wilson's 95 % interval, as a line has it."""
    low, high = wilson(right, total)
    return {name: right / total, f"{name}_low": low, f"{name}_high": high}


def sums(model: PreTrainedModel, groups: list[Group], rows: RowBudget, tick: Tick) -> dict[tuple[int, int], float]:
    """Σ logπ of each response, in nats, by (group key, response)."""
    scores = everyones(rows.fit(lambda longest: score(model, groups, longest, tick), groups))
    return {key: float(logps.sum()) for key, logps in scores.items()}
