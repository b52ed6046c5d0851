"""What is expected of a job, worked out behind its submit and kept with it: against that its stages are measured."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from service.db import Database
from service.jobs import repository
from service.jobs.forecast.behind import Behind
from service.jobs.forecast.counting import SECONDS, Counts
from service.jobs.forecast.foresight import foresee, told
from service.jobs.repository import foreseen
from service.jobs.running.placement import Offer
from service.jobs.submission import NewJob, Sender
from service.jobs.tables import Job
from service.storage.store import Store

log = logging.getLogger(__name__)

WAITING = 32
"""Jobs that may wait for it; of others nothing is kept, and nothing measured."""

_PATIENCE = 10 * SECONDS


class Expectations:
    """Sees to jobs behind the requests of this process. `offers` gives what the living workers have."""

    def __init__(
        self,
        database: Database,
        store: Store,
        counts: Counts,
        offers: Callable[[], Mapping[str, Offer]],
        teacher_hosts: str,
    ) -> None:
        self._database, self._store, self._counts, self._offers = database, store, counts, offers
        self._teacher_hosts = teacher_hosts
        self._behind = Behind(self._see_to, WAITING)
        self._lock, self._closed = threading.Lock(), False

    def later(self, owner: str, job_id: str) -> None:
        """Sees to a job that was submitted, some time."""
        self._behind.put((owner, job_id))

    def close(self) -> None:
        """From here on the database is left alone."""
        with self._lock:
            self._closed = True

    def _see_to(self, job: tuple[str, str]) -> None:
        owner, job_id = job
        try:
            self._expect(owner, job_id)
        except Exception as error:  # of whatever kind: the next job is seen to
            log.warning("nothing_expected job_id=%s error=%r", job_id, error)

    def _expect(self, owner: str, job_id: str) -> None:
        with self._lock:
            if self._closed:
                return
            job, offers = self._job(owner, job_id), self._offers()
            if job is None or job.estimate or not any(offer.calibration for offer in offers.values()):
                return
            sender = Sender(owner, max_active_jobs=2**31, teacher_hosts=self._teacher_hosts)
            plan = replace(foresee(self._database, self._store, asked_again(job), sender, offers), reused={})
        asked = plan.question()
        if asked is None:
            return
        works = self._counts.ask(asked).result(_PATIENCE)
        expected = {stage.name: stage.taking.write() for stage in told(plan, works) if stage.taking}
        with self._lock:
            if not self._closed:
                with self._database.transaction() as session:
                    foreseen.note(session, job_id, expected)

    def _job(self, owner: str, job_id: str) -> Job | None:
        with self._database.snapshot() as session:
            return repository.job(session, owner, job_id)


def asked_again(job: Job) -> NewJob:
    """The job as it could be submitted again, with every setting of every stage spelled out."""
    files = {field.name: getattr(job, field.name) for field in fields(NewJob) if field.name.endswith("_file")}
    settings = {"method": job.method["type"], "stages": job.method["stages"], "seed": job.seed, "masks": job.masks}
    return NewJob(job.model, **files, **settings)
