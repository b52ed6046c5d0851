"""The only task: a doorbell. A message names a stage and an epoch and decides nothing."""

from __future__ import annotations

from service.broker import TASK
from worker.app import app, nudge, runner


@app.task(name=TASK)  # type: ignore[untyped-decorator]  # Celery ships no types
def run_stage(stage_id: str, epoch: int) -> None:
    """Run a stage, if the database says that it is still to be run at this epoch."""
    runner().run(str(stage_id), int(epoch))
    nudge()
