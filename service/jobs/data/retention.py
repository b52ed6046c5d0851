"""What stages made on the way to a job's result is let go by a policy: of the oldest jobs first.

The result stays: the aligned model, its sparse form and the evaluation; and so does what the dashboard shows of the
rest. Nothing goes that an unfinished job needs or may take over, or that a job needs that may be retried. What is gone
is said on its stage. Whoever wants it again has it computed again: another job, or a retry, finds no result to reuse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy.orm import Session

from allo_engine.pipeline import MODELS, model_source
from allo_engine.rounds import kind_of
from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import JOB_ENDED, StageStatus
from service.jobs.progression import add_event, checkpoint_model
from service.jobs.repository import retained
from service.jobs.tables import Job, Stage
from service.settings import Settings

_SHOWN = ("where.json", "examples.jsonl")
"""Small files that the dashboard shows (see learned.py)."""


@dataclass(frozen=True)
class Policy:
    """Whose intermediate results stay, of each owner: those of the latest so many jobs that have ended, of jobs that
    ended within so many seconds, and no more than so many bytes. 0 is no bound."""

    jobs: int = 0
    seconds: float = 0
    bytes: int = 0


def policy_of(settings: Settings) -> Policy | None:
    """As the settings have it; None where everything stays."""
    policy = Policy(settings.intermediate_jobs, settings.intermediate_days * 86_400, settings.intermediate_bytes)
    return None if policy == Policy() else policy


@dataclass(frozen=True)
class LetGo:
    """What a look did: stages whose results were let go, and their bytes. Content is erased after its grace, where
    nothing else holds it."""

    stages: int
    bytes: int


@dataclass(frozen=True)
class Retention:
    """Keeps to the policy. `retriable`: for how many seconds a job that failed or was cancelled may be retried."""

    database: Database
    policy: Policy
    retriable: float

    def look(self) -> LetGo:
        """Let go of what the policy does not keep."""
        now = self.database.now()
        with self.database.snapshot() as session:
            over = self._over(session, now)
        done = [one for job_id in over for one in self._let_go(job_id, now)]
        return LetGo(len(done), sum(done))

    def _over(self, session: Session, now: int) -> list[str]:
        """The jobs whose intermediate results the policy does not keep. A content that several share is of the
        latest."""
        names, over = retained.stage_names(session), list[str]()
        jobs, size, seen = defaultdict[str, int](int), defaultdict[str, int](int), defaultdict[str, set[str]](set)
        results = retained.ended_results(session, now - int(self.retriable))
        for (owner, job_id, ended), rows in groupby(results, lambda row: row[:3]):
            found = {sha256: count for *_, name, sha256, count in rows if is_intermediate(name, names[job_id])}
            if found:
                jobs[owner] += 1
                size[owner] += sum(count for sha256, count in found.items() if sha256 not in seen[owner])
                seen[owner] |= found.keys()
                if self._exceeded(jobs[owner], now - ended, size[owner]):
                    over.append(job_id)
        return over

    def _exceeded(self, jobs: int, age: float, size: int) -> bool:
        bounds = (self.policy.jobs, jobs), (self.policy.seconds, age), (self.policy.bytes, size)
        return any(0 < bound < found for bound, found in bounds)

    def _let_go(self, job_id: str, now: int) -> list[int]:
        """Bytes of each stage's result that was let go."""
        with self.database.transaction() as session:
            job = repository.lock_job(session, job_id)
            if job is None or job.status not in JOB_ENDED:
                return []
            stages = repository.stages(session, [job.id])
            names = [stage.name for stage in stages]
            between = [stage for stage in stages if is_intermediate(stage.name, names)]
            gone = [(stage, size) for stage in between if (size := _forget(session, job, stage, now))]
            if gone:
                whose, size = " and ".join(stage.name for stage, _ in gone), sum(size for _, size in gone)
                said = f"What {whose} made was let go, {size} bytes: it is computed again where it is wanted again."
                add_event(session, job, now, "info", said, {"let_go": [stage.name for stage, _ in gone]})
            return [size for _, size in gone]


def is_intermediate(name: str, names: Sequence[str]) -> bool:
    """Whether the stage of a job with stages of these names is neither the one that its aligned model is of, nor its
    evaluation."""
    return kind_of(name) != "evaluate" and name != model_source(names).split(".")[0]


def _forget(session: Session, job: Job, stage: Stage, now: int) -> int:
    """Lets the stage's result go, with the name of its model; the bytes that it had."""
    if stage.status is not StageStatus.SUCCEEDED or stage.digest is None:
        return 0
    rows = [row for row in repository.artifacts(session, [stage.id]) if row.path not in _SHOWN]
    size = sum(row.bytes for row in rows)
    if rows:
        retained.drop_artifacts(session, [row.id for row in rows])
        stage.digest, stage.let_go = None, {"at": now, "files": len(rows), "bytes": size}
        if kind_of(stage.name) in MODELS:
            retained.drop_model(session, job.owner, checkpoint_model(job, stage.name))
    return size
