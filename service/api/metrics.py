"""/metrics, as Prometheus reads it: what this process counted, and what the database holds at the moment."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from service.api.context import Meter, Parts
from service.api.reading import reading
from service.db import Database
from service.jobs import figures
from service.jobs.data import scrubbing
from service.jobs.running.workers import WorkerView

router = APIRouter(tags=["Operations"])


@router.get("/metrics", response_class=Response)
@reading
def metrics(parts: Parts, _key: Meter) -> Response:
    """Requests of this process; jobs, stages, bytes and devices of the whole service. Wants the scope `metrics`."""
    whole = CollectorRegistry()
    whole.register(_Present(parts.database, parts.workers()))
    text = generate_latest(parts.meters.registry) + generate_latest(whole)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Present(Collector):
    """What the database holds at this moment."""

    def __init__(self, database: Database, workers: list[WorkerView]) -> None:
        self._database, self._workers = database, workers
        self._read = scrubbing.read(database)

    def collect(self) -> Iterator[Metric]:
        found = figures.read(self._database)
        jobs = GaugeMetricFamily("allo_jobs", "Jobs", labels=["status"])
        for job_status, count in found.jobs.items():
            jobs.add_metric([job_status], count)
        stages = GaugeMetricFamily("allo_stages", "Stages", labels=["stage", "status"])
        for (name, stage_status), count in found.stages.items():
            stages.add_metric([name, stage_status], count)
        age = "Seconds since the oldest job was submitted that has a stage waiting for a worker; 0 without one"
        yield from (jobs, stages, GaugeMetricFamily("allo_queue_age_seconds", age, found.queue_age))
        yield GaugeMetricFamily("allo_queue_depth", "Stages that wait for a worker", found.queue_depth)
        behind = "Seconds since a running stage's checkpoint went to the store, of the stage for which that is longest"
        yield GaugeMetricFamily("allo_kept_checkpoint_age_seconds", behind, found.kept_age)
        yield from self._work(found)
        yield from self._devices()

    def _work(self, found: figures.Figures) -> Iterator[Metric]:
        seconds = SummaryMetricFamily("allo_stage_seconds", "Stages that were computed", labels=["stage"])
        attempts = CounterMetricFamily("allo_stage_attempts", "Attempts that counted", labels=["stage"])
        for name, work in found.work.items():
            seconds.add_metric([name], work.succeeded, work.seconds)
            attempts.add_metric([name], work.attempts)
        yield from (seconds, attempts)
        held = GaugeMetricFamily("allo_bytes", "Bytes that objects name, each as often as it is named", labels=["kind"])
        held.add_metric(["files"], found.file_bytes)
        held.add_metric(["artifacts"], found.artifact_bytes)
        yield held
        yield CounterMetricFamily("allo_scrubbed_bytes", "Bytes of the store that were read again", self._read.bytes)
        yield GaugeMetricFamily("allo_damaged", "Contents found damaged and not brought again", len(self._read.damages))

    def _devices(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("allo_workers", "Workers that live", len(self._workers))
        slots = GaugeMetricFamily("allo_worker_slots", "Stages that run at once", labels=["worker", "state"])
        devices = GaugeMetricFamily("allo_worker_devices", "Accelerators", labels=["worker", "state"])
        memory = GaugeMetricFamily("allo_worker_device_bytes", "Memory of an accelerator", labels=["worker", "device"])
        for view in self._workers:
            name, used = view.worker.id, {device for stage in view.stages for device in stage.devices or ()}
            slots.add_metric([name, "total"], view.offer.slots)
            slots.add_metric([name, "used"], len(view.stages))
            devices.add_metric([name, "total"], len(view.offer.devices))
            devices.add_metric([name, "used"], len(used))
            for device in view.offer.devices:
                memory.add_metric([name, device.name], device.bytes or 0)
        yield from (slots, devices, memory)
