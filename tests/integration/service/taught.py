"""A finished job whose stages left what a real run leaves for people to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from allo_engine.data.statistics import wilson
from allo_engine.pipeline import OUTPUTS
from allo_engine.rounds import kind_of
from service.jobs import repository
from service.jobs.ids import new_id
from service.jobs.running import attempts, dispatch
from service.jobs.tables import Event
from tests.integration.service.domain import ALLO, WORKER, Domain


def share(name: str, right: int, total: int) -> dict[str, float]:
    low, high = wilson(right, total)
    return {name: right / total, f"{name}_low": low, f"{name}_high": high}


SHARES = {"weights": 1000, "forget": 0.01, "improve": 0.05}
WHERE = {
    "tensors": {},
    "layers": {
        "model.layers.0": {"self_attn.q_proj": SHARES, "mlp.up_proj": {**SHARES, "improve": 0.1}},
        "model.layers.1": {"self_attn.q_proj": {**SHARES, "improve": 0.0}, "mlp.up_proj": SHARES},
        "outside the layers": {"model.embed_tokens": SHARES},
    },
}

RESPONSE = {
    "problem": "What is 1+1?",
    "tokens": ["It", " is", " 3", "<|end|>"],
    "probabilities": [0.9, 0.5, 0.04, 0.01],
    "ends": [False, False, False, True],
    "length": 4,
}

RIGHT = {"base": "0000", "sft": "1010", "warmup": "1100", "forget": "1000", "improve": "1101"}
"""A digit a held-out case: whether the model has it right."""

FINDINGS = {
    "locate": {"masks": {"where.json": json.dumps(WHERE)}},
    "token_rewards": {"scores": {"examples.jsonl": json.dumps(RESPONSE) + "\n"}},
}
"""Stage → output → its files' texts."""


def evaluated(rights: Mapping[str, str], text: str = "says") -> dict[str, dict[str, str]]:
    """What an evaluation leaves in which the models were right there."""
    names = [f"case-{place}" for place in range(len(next(iter(rights.values()))))]
    models = [
        {"model": model, "cases": [digit == "1" for digit in right], **share("accuracy", right.count("1"), len(right))}
        for model, right in rights.items()
    ]
    texts = [
        {
            "case": name,
            "problem": f"ask {name}",
            "models": {model: {"answer": f"{model} {text} {name}", "verdict": "right"} for model in rights},
        }
        for name in names
    ]
    report = json.dumps({"models": models, "cases": names})
    return {"report": {"report.json": report, "texts.jsonl": "".join(json.dumps(line) + "\n" for line in texts)}}


def taught(domain: Domain, findings: Mapping[str, Any] | None = None, **new: Any) -> str:
    """The job's id; `findings` are its own, `new` what it is submitted with."""
    stages = {"sft": {}, "warmup": {}, **new.pop("stages", {})}
    job_id = domain.submit(replace(ALLO, stages=stages, **new)).job.id
    found = {**FINDINGS, "evaluate": evaluated(RIGHT), **(findings or {})}
    while rings := dispatch.ready_stages(domain.database):
        assert dispatch.place(domain.database, domain.store, rings[0].stage_id, rings[0].epoch, WORKER)
        claimed = attempts.claim(domain.database, rings[0].stage_id, rings[0].epoch, WORKER)
        assert claimed is not None
        files = written(domain, OUTPUTS[kind_of(claimed.name)], found.get(claimed.name, {}))
        metrics = figures_of(found["evaluate"]) if claimed.name == "evaluate" else {}
        assert attempts.finish(domain.database, domain.store, claimed.stage_id, claimed.epoch, files, metrics)
    return job_id


def figures_of(evaluation: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """What an evaluation tells of what it found."""
    rows = json.loads(evaluation["report"]["report.json"])["models"]
    return {f"{row['model']}_{key}": row[key] for row in rows for key in row if key.startswith("accuracy")}


def written(
    domain: Domain, outputs: Sequence[str], texts: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str, str, int]]:
    """(output, path, sha256, bytes) of a stage's files."""
    files = [
        (output, path, text) for output in outputs for path, text in texts.get(output, {"data.bin": output}).items()
    ]
    blobs = [(output, path, domain.store.put_stream([text.encode()])) for output, path, text in files]
    return [(output, path, blob.sha256, blob.size) for output, path, blob in blobs]


def told(domain: Domain, job_id: str, *figures: Mapping[str, Any]) -> None:
    """Metrics that stages of a job have told, {stage, step, …} each."""
    with domain.database.transaction() as session:
        count = repository.counts(session, [job_id])[0][1]
        for seq, data in enumerate(figures, count + 1):
            event = Event(id=new_id("ftevent"), job_id=job_id, seq=seq, created_at=0, level="info", type="metrics")
            event.message, event.data = "", dict(data)
            session.add(event)
        job = repository.lock_job(session, job_id)
        assert job is not None
        job.event_count = count + len(figures)
