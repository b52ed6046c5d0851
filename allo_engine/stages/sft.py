"""Supervised fine-tuning: L = −Σ logπ(response tokens) / #tokens. The "SFT LLM" that the paper starts from.

TRL's SFTTrainer may do it in place of the engine's own loop.
"""

from __future__ import annotations

from pathlib import Path

from allo_engine.configs.sft import SftConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, supervised_examples
from allo_engine.model.sequences import singles
from allo_engine.report import Report
from allo_engine.training import by_trl
from allo_engine.training.exam import measure_of
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.own_mask import OwnMask
from allo_engine.training.trained import trained
from allo_engine.training.validation import held_out


def run(config: SftConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    start = inputs["model"]
    examples = supervised_examples(inputs["examples"], Encoder.of(start, config), config.share)
    groups = fitting_groups(
        [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)],
        config,
        start,
        report,
    )
    groups, held = held_out(groups, config)
    if config.trainer == "trl":
        metrics = by_trl.Stage(config, start, groups, report, work, outputs / "checkpoint").examples()
        return {"examples": len(groups), **metrics}
    training = trained(start, config, report, work, OwnMask(start, groups, config, work, report))
    measure = measure_of(config, held, start, training.trainer, report, work)
    metrics = training.trainer.train(groups, CrossEntropy(), held, measure)
    training.save(outputs / "checkpoint")
    return {"examples": len(groups), "trained_weights": training.weights, **metrics}
