"""Improving: token-filtered DPO on pairs, in the mask.

L = −logσ(β(Σ_chosen d − Σ_{t∈K} d_rejected)), d = logπ − logπ_ref, the reference being the forgotten model, K the
⌈ε·R⌉ rejected tokens with the lowest d, R the rejected response's own length.
"""

from __future__ import annotations

from pathlib import Path

from allo_engine import losses
from allo_engine.config import ImproveConfig
from allo_engine.delta import apply_delta, save_delta
from allo_engine.masks import positions_of, union
from allo_engine.models import Encoder, fingerprint, load_model, load_tokenizer, save_model
from allo_engine.objectives import PairObjective
from allo_engine.reading import Inputs, fitting_groups, pairs
from allo_engine.report import Report
from allo_engine.sparse import SparseModel
from allo_engine.training import Trainer


def run(config: ImproveConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    tokenizer = load_tokenizer(inputs["model"])
    groups = fitting_groups(
        pairs(inputs["pairs"], Encoder(tokenizer, config.template)), config, inputs["model"], report
    )
    model = load_model(inputs["model"])
    base = fingerprint(inputs["model"])
    apply_delta(model, inputs["forgotten"], base)
    positions = positions_of(inputs["masks"] / "improve.safetensors", model)
    sparse = SparseModel(model, positions)
    trainer = Trainer(model, sparse.values, config, report, work, written=sparse.write_back)
    objective = PairObjective(
        trainer.reference(groups),
        config.beta,
        lambda chosen, rejected: losses.filtered_dpo(
            chosen, rejected, config.beta, config.filter_ratio, both_sides=config.filter == "both"
        ),
    )
    metrics = trainer.train(groups, objective, reference=True)
    trained = sum(values.numel() for values in sparse.values.values())
    sparse.detach(model)
    forgotten = positions_of(inputs["masks"] / "forget.safetensors", model)
    save_delta(model, union(positions, forgotten), base, outputs / "delta")
    save_model(model, tokenizer, outputs / "checkpoint")
    return {"pairs": sum(len(group.items) for group in groups), "trained_weights": trained, **metrics}
