"""One rank of a job's stages, one after the other.

Inputs are what the first rank wrote below the root; the others write aside, as `python -m allo_engine` has it.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path

from allo_engine.pipeline import Data, PlannedStage, plan
from allo_engine.ranks import here
from allo_engine.report import Report

SETTINGS = {"n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 96} | {
    "validation_share": 0.3,
    "average": 2,
}


def planned(train: str) -> list[PlannedStage]:
    """All trained stages, and what lies between them; "shared" has ZeRO 3 in all but the last, "parted" shares out
    frozen weights in all of them, and computes activations twice."""
    parted = {"train": "mask", "zero": 3, "gradient_checkpointing": True}
    shorthand = SETTINGS | {"all": {}, "mask": {"train": "mask"}, "shared": {"zero": 3}, "parted": parted}[train]
    warmup = {"warmup": {"mask_ratio": 0.3}}
    asked = {"all": {}, "mask": warmup, "shared": {"forget": {"train": "all"}}, "parted": warmup}[train]
    asked_of_it = {"best_by": "accuracy"} if train in ("all", "mask") else {}  # which one that is shared out is not
    trained = plan("supervised", Data("problems"), {}, shorthand | asked_of_it)
    tried = {"improve": {"scales": (0.5, 1.0)}}
    return [*trained, *plan("allo", Data("preferences"), asked | tried, shorthand)]


def run(root: Path, train: str) -> None:
    rank, report = here().rank, Report(io.StringIO())
    for stage in planned(train):
        given = {"training_file": root / ("problems" if stage.name == "sft" else "preferences")}
        given["model"] = root / "model"
        inputs = {
            name: root / source.replace(".", "/") if "." in source else given[source]
            for name, source in stage.inputs.items()
        }
        inputs["cache"] = root / "cache"
        own = root if rank == 0 else root / f"aside{rank}"
        work = own / "work" / stage.name
        module = importlib.import_module(f"allo_engine.stages.{stage.name}")
        module.run(stage.config, inputs, own / stage.name, work, report)
        here().barrier()
