"""One rank of some trainings, one after the other: python -m tests.scale.sharded ROOT RANK RANKS

ROOT holds cases.json. What is left of each case stands in ROOT/<name>: its weights, and what was reported.
"""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from allo_engine.config import SftConfig
from allo_engine.forks import leave
from allo_engine.launching import Place, joined
from allo_engine.model.attention import NAME
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.logps import PerToken
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group
from allo_engine.ranks import here
from allo_engine.report import Report, Stopped
from allo_engine.training import losses
from allo_engine.training.figures import Figures
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy, Logps, Objective, PairObjective
from tests.tiny import tiny_model
from tests.unit.engine.training.test_gradients_of_ranks import DESCENT, STEP

SEVERAL_STEPS = {"epsilon": 1e-3, "weight_decay": 0.01, "max_grad_norm": 0.5, "batch_size": 6, "n_epochs": 2}


@dataclass(frozen=True)
class Case:
    """A training. `twice` says that the model's second layer is its first one; `nan`, that a problem has no finite
    loss; `stop` is the step behind which it is stopped. What a case `resumes` is another's work folder. A case of a
    `gradient` takes one step, over all problems, which is the gradient: see DESCENT.
    """

    name: str
    zero: int = 0
    objective: str = "answers"
    tied: bool = True
    twice: bool = False
    nan: bool = False
    stop: int = 0
    resumes: str = ""
    precision: str = "float32"
    again: bool = False
    offload: bool = False
    gradient: bool = False
    learning_rate: float = 1e-3


class NotANumberFor(CrossEntropy):
    """Cross-entropy, but NaN for one problem."""

    def __init__(self, key: int) -> None:
        self._key = key

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        loss, figures = super().__call__(group, logps, given)
        return loss * (math.nan if group.key == self._key else 1.0), figures


class StopAt(Report):
    """Asks to stop when a given optimizer step was reported."""

    def __init__(self, stream: io.StringIO, step: int) -> None:
        super().__init__(stream)
        self._step = step

    def progress(self, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        super().progress(step, total, metrics)
        self.stop_requested |= bool(metrics) and self._step == dict(metrics or {}).get("step")


def groups() -> list[Group]:
    source = random.Random(0)
    found = []
    for key in range(9):
        prompt = [0, *(source.randrange(5, 261) for _ in range(source.randrange(2, 9)))]
        texts = [[source.randrange(5, 261) for _ in range(source.randrange(1, 12))] + [1] for _ in range(4)]
        found.append(Group(key, prompt, dict(enumerate(texts)), [(0, 2), (1, 3)]))
    return found


def model_of(case: Case) -> LlamaForCausalLM:
    model = tiny_model(tied=case.tied)
    if case.twice:
        model.model.layers[1] = model.model.layers[0]
    model.set_attn_implementation(NAME)
    return model


def run(case: Case, root: Path) -> None:
    """Alone, ZeRO is none."""
    ranks, stream, own = here(), io.StringIO(), root / case.name
    report = StopAt(stream, case.stop)
    work = (root / case.resumes / "work" if case.resumes else own / "work") / str(ranks.rank)
    zero = case.zero if ranks.size > 1 else 0
    how = {
        "precision": case.precision,
        "gradient_checkpointing": case.again,
        "offload": case.offload,
        "learning_rate": case.learning_rate,
    }
    config = SftConfig(**{**how, **(STEP | DESCENT if case.gradient else SEVERAL_STEPS)})
    model = model_of(case)
    rows = RowBudget(64, work, report, again=not zero)
    trainer = Trainer(model, dict(model.named_parameters()), config, report, work, rows, zero=zero)
    with suppress(Stopped):
        trainer.train(groups(), objective_of(case, trainer, work, config))
    ranks.barrier()
    with trainer.weights() as weights:
        if weights:
            names = dict(model.named_parameters())
            save_file({name: weights(name).cpu().contiguous() for name in names}, own / "weights.safetensors")
            (own / "lines.jsonl").write_text(stream.getvalue())


def objective_of(case: Case, trainer: Trainer, work: Path, config: SftConfig) -> Objective:
    if case.nan:
        return NotANumberFor(4)
    if case.objective == "answers":
        return CrossEntropy()
    reference: PerToken = trainer.reference(groups(), LogpCache(work, work, "tiny", config.precision))
    return PairObjective(reference, 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, 0.3))


def write_cases(root: Path, cases: Iterable[Case]) -> None:
    for case in cases:
        (root / case.name).mkdir(parents=True)
    (root / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))


def run_all(root: Path) -> None:
    for fields in json.loads((root / "cases.json").read_text()):
        run(Case(**fields), root)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Place(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[1]) / f"meeting{sys.argv[3]}")
    with joined(place, Report(sys.stdout)):
        run_all(Path(sys.argv[1]))
    leave(0)
