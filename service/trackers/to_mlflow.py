"""MLflow: a run of an experiment, metrics by the stage's own steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from service.jobs.access.telling import Telling

_STATUS = {"queued": "SCHEDULED", "succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
"""Of one request."""

_LONGEST = 500
"""Characters of a parameter, for the oldest servers."""

_TAG = "allo.tracking"

Item = TypeVar("Item")


def tell(telling: Telling) -> str:
    client = MlflowClient(telling.place)
    run = telling.run or _begun(client, telling)
    metrics = [
        Metric(name, value, point.at * 1000, point.step)
        for point in telling.points
        for name, value in point.named().items()
    ]
    metrics += [Metric(name, value, round(time.time() * 1000), 0) for name, value in telling.results.items()]
    if telling.doubtful:
        metrics = _new_alone(client, run, metrics)
    for some in _parts(metrics, _MOST_METRICS):
        client.log_batch(run, metrics=some)
    client.update_run(run, status=_STATUS.get(telling.status, "RUNNING"))
    return run


def _begun(client: MlflowClient, telling: Telling) -> str:
    """The run, with its parameters. One that an attempt made and could not tell us of is found again."""
    experiment = _experiment(client, telling.settings["experiment"])
    name = telling.settings.get("run_name") or telling.job
    found = client.search_runs([experiment], f"tags.`{_TAG}` = '{telling.id}'") if telling.doubtful else []
    run = found[0] if found else client.create_run(experiment, tags={_TAG: telling.id}, run_name=name)
    client.log_batch(run.info.run_id, tags=[RunTag("allo.job", telling.job)])
    parameters = [Param(name, value[:_LONGEST]) for name, value in telling.parameters.items()]
    for some in _parts(parameters, _MOST_PARAMETERS):
        client.log_batch(run.info.run_id, params=some)
    return str(run.info.run_id)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return client.create_experiment(name)
    except MlflowException:  # another job has just made it
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _new_alone(client: MlflowClient, run: str, metrics: Sequence[Metric]) -> list[Metric]:
    """What the run does not have: a store may keep a repetition as a second value."""
    names = {metric.key for metric in metrics}
    known = {(name, told.step, told.value) for name in names for told in client.get_metric_history(run, name)}
    return [metric for metric in metrics if (metric.key, metric.step, metric.value) not in known]


def _parts(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
