"""Weights & Biases: a run named by the job, resumed for every telling.

Its steps are the numbers of the job's events, which only grow: what is told twice it drops by itself. Each stage's
figures are drawn over that stage's own steps.
"""

from __future__ import annotations

import wandb

from service.jobs.access.telling import Telling

_OURS = {
    "console": "off",
    "disable_git": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""Nothing of this process or its machine is of the job."""


def tell(telling: Telling) -> str:
    settings, parameters = telling.settings, telling.parameters
    run = wandb.init(
        id=telling.job,
        resume="allow",
        project=settings["project"],
        entity=settings.get("entity"),
        name=settings.get("name") or telling.job,
        tags=[*settings.get("tags", ()), f"allo/{parameters['method']}", f"allo/{parameters['model']}"[:64]],
        config=dict(parameters),
        dir=".",
        settings=wandb.Settings(**_OURS, **({"base_url": telling.place} if telling.place else {})),
    )
    for stage in {point.stage for point in telling.points}:
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    for point in telling.points:
        run.log({**point.named(), f"{point.stage}/step": point.step}, step=point.seq)
    run.summary.update({"status": telling.status, **telling.results})
    run.finish(exit_code=1 if telling.status == "failed" else 0)
    return telling.job
