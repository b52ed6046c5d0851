"""Supervised fine-tuning: L = −Σ logπ(response tokens) / #tokens. The "SFT LLM" that the paper starts from."""

from __future__ import annotations

from pathlib import Path

from allo_engine.config import SftConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, supervised_examples
from allo_engine.model.loading import save_model
from allo_engine.model.sequences import singles
from allo_engine.report import Report
from allo_engine.training.loop import dense_trainer
from allo_engine.training.objectives import CrossEntropy


def run(config: SftConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    encoder = Encoder.of(inputs["model"], config)
    examples = supervised_examples(inputs["examples"], encoder)
    groups = fitting_groups(
        [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)],
        config,
        inputs["model"],
        report,
    )
    model, trainer = dense_trainer(inputs["model"], config, report, work)
    metrics = trainer.train(groups, CrossEntropy())
    save_model(model, encoder.tokenizer, outputs / "checkpoint")
    return {"examples": len(groups), **metrics}
