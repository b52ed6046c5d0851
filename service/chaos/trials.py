"""Trials, one after the other, on one running system: faults, a visitor, an end, and the rules."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from service.chaos.checker import violations
from service.chaos.faults import FAULTS, possible
from service.chaos.history import History, Line
from service.chaos.system import OWNER, System
from service.chaos.visitor import Visitor
from service.db import Database
from service.jobs import service
from service.jobs.data import files
from service.jobs.errors import NotFound
from service.jobs.lifecycle import JOB_ENDED, JobStatus
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.storage.store import StoreError

_OK = 200
_JOBS = 3
_END_SECONDS = 180.0
"""Long, for a busy machine: a job takes three seconds."""
_ORPHAN_SECONDS = 30.0


@dataclass
class Summary:
    """What came of the trials so far."""

    trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    violations: dict[int, list[str]] = field(default_factory=dict)


def run(folder: Path, trials: int, seed: int, say: Callable[[str], None], grown: bool = False) -> Summary:
    """Run the trials, trial number n with the seed `seed` + n; ends with the first in which a rule was broken."""
    summary, history = Summary(), History(folder / "history.jsonl")
    with System(folder, grown) as system:
        for number in range(seed, seed + trials):
            began, faults = time.monotonic(), _trial(system, history, number)
            summary.trials += 1
            summary.faults.update(faults)
            summary.jobs += sum(line["who"] == "database" and line["did"] == "job" for line in history.lines)
            found = violations(history.lines)
            say(f"trial {number}: {', '.join(faults)}: {'; '.join(found) or 'ok'} ({time.monotonic() - began:.0f} s)")
            if found:
                summary.violations[number] = found
                break
    history.close()
    return summary


def _trial(system: System, history: History, seed: int) -> list[str]:
    chance = Random(seed)  # noqa: S311 - to be had again, not to be secret
    history.begin(seed)
    visitor = Visitor(system.url, system.key, seed, _JOBS, history)
    visitor.start()
    done = [name for _ in range(chance.randint(1, 3)) for name in _break(system, history, chance)]
    visitor.join(_END_SECONDS)
    visitor.stop()
    visitor.join()
    visitor.resume_all()
    _settle(system, history)
    return done


def _break(system: System, history: History, chance: Random) -> list[str]:
    """One fault, or two at once, for a while that is sometimes longer than a lease."""
    time.sleep(chance.uniform(0, 2))
    names = chance.sample(possible(system), k=chance.choice((1, 1, 2)))
    seconds = chance.choice((0.1, 1.0, 2.5, 5.0))
    with ExitStack() as faults:
        for name in names:
            part = faults.enter_context(FAULTS[name](system, chance))
            history.note("chaos", name, part=part, seconds=seconds)
        time.sleep(seconds)
    system.heal()
    history.note("chaos", "over")
    return names


def _settle(system: System, history: History) -> None:
    """Wait for the ends of all jobs, and note what is there then."""
    ours = jobs_of_trial(system.database, OWNER, history.lines)
    end = time.monotonic() + _END_SECONDS
    while unfinished := [job for job in ours() if job.job.status not in JOB_ENDED]:
        if time.monotonic() > end:
            for view in unfinished:
                history.note("system", "unfinished", job=view.job.id, status=view.job.status.value)
            break
        time.sleep(0.2)
    for view in ours():
        _note_job(system, history, view.job.id)
    for line in history.lines.copy():
        if line["did"] == "upload" and line["status"] == _OK:
            _note_file(system, history, line["file"])
    end = time.monotonic() + _ORPHAN_SECONDS
    while (left := system.trainers()) and time.monotonic() < end:
        time.sleep(0.2)
    for process in left:
        history.note("system", "orphan", pid=process.pid, command=" ".join(process.cmdline()))


def jobs_of_trial(database: Database, owner: str, lines: list[Line]) -> Callable[[], list[service.JobView]]:
    """Those that the visitor heard of, and whatever is or was unfinished: no earlier trial's is. By their names and
    states, for in a trial that sets clocks the newest job is not the one that was made last."""
    ours = {line["job"] for line in lines if line["did"] == "submit" and line["status"] == _OK}

    def found() -> list[service.JobView]:
        for status in frozenset(JobStatus) - JOB_ENDED:
            unfinished, _ = service.look_for(database, Wanted(owner, status), Page(limit=4 * _JOBS))
            ours.update(line.job.id for line in unfinished)
        return [service.read(database, owner, job) for job in sorted(ours)]

    return found


def _note_job(system: System, history: History, job: str) -> None:
    view = service.read(system.database, OWNER, job)
    history.note("database", "job", job=job, status=view.job.status.value, error=view.job.error)
    for stage in view.stages:
        state = {"status": stage.status.value, "epoch": stage.epoch, "attempt": stage.attempt, "beat": stage.beat}
        history.note("database", "stage", job=job, name=stage.name, **state)
    for event in service.read_events(system.database, OWNER, job, Page(limit=1000, order="asc"))[0]:
        history.note("database", "event", job=job, seq=event.seq, message=event.message)
    for artifact in view.artifacts or ():
        history.note("store", "artifact", job=job, sha256=artifact.sha256, verified=_verifies(system, artifact.sha256))


def _note_file(system: System, history: History, file: str) -> None:
    try:
        sha256 = files.read_file(system.database, OWNER, file).sha256
    except NotFound:
        sha256 = None
    history.note("store", "file", file=file, sha256=sha256, verified=sha256 is not None and _verifies(system, sha256))


def _verifies(system: System, sha256: str) -> bool:
    try:
        for _ in system.store.open(sha256):
            pass
    except StoreError:
        return False
    return True


def written(summary: Summary) -> str:
    """The summary as JSON."""
    counts = dict(sorted(summary.faults.items()))
    broken = {str(seed): found for seed, found in summary.violations.items()}
    return json.dumps(
        {"trials": summary.trials, "jobs": summary.jobs, "faults": counts, "violations": broken}, indent=1
    )
