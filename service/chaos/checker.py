"""What must hold of any history, whatever was done to the system. Pure: lines in, violations out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from service.chaos.history import Line

_OK, _FAULT = 200, 500
_SUCCEEDED = "succeeded."


def violations(history: Iterable[Line]) -> list[str]:
    """Each rule that was broken, in words; empty where all held."""
    lines = list(history)
    return [*_jobs(lines), *_commits(lines), *_events(lines), *_answers(lines), *_bytes(lines), *_left(lines)]


def _jobs(lines: list[Line]) -> Iterator[str]:
    """Every job that was accepted is there, and ended; none failed, for nobody but the faults could have failed it."""
    ended = {line["job"]: line["status"] for line in _of(lines, "database", "job")}
    for line in _of(lines, "visitor", "submit"):
        if line["status"] == _OK and line["job"] not in ended:
            yield f"{line['job']} was accepted and is lost"
    for job, status in ended.items():
        if status not in ("succeeded", "cancelled"):
            yield f"{job} is {status}"


def _commits(lines: list[Line]) -> Iterator[str]:
    """At most one commit a stage."""
    told = Counter(
        (line["job"], line["message"])
        for line in _of(lines, "database", "event")
        if line["message"].endswith(_SUCCEEDED) and line["message"].startswith("Stage ")
    )
    for (job, message), times in told.items():
        if times > 1:
            yield f"{job}: {message!r} was committed {times} times"


def _events(lines: list[Line]) -> Iterator[str]:
    """A job's events are numbered without a gap."""
    numbers = defaultdict(list)
    for line in _of(lines, "database", "event"):
        numbers[line["job"]].append(line["seq"])
    for job, found in numbers.items():
        if found != list(range(1, len(found) + 1)):
            yield f"{job}: events {found} have a gap"


def _answers(lines: list[Line]) -> Iterator[str]:
    """What was acknowledged holds: one key is one job, and a job that was cancelled did not succeed after all."""
    jobs = defaultdict(set)
    for line in _of(lines, "visitor", "submit"):
        if line["status"] == _OK:
            jobs[line["key"]].add(line["job"])
    for key, made in jobs.items():
        if len(made) > 1:
            yield f"one key made {len(made)} jobs: {key}"
    for line in lines:
        if line["who"] == "visitor" and (line.get("status") or 0) == _FAULT:
            yield f"{line['did']} was answered with {_FAULT}"
    ended = {line["job"]: line["status"] for line in _of(lines, "database", "job")}
    for line in _of(lines, "visitor", "cancel"):
        if line["status"] == _OK and ended.get(line["job"]) == "succeeded":
            yield f"{line['job']} succeeded after its cancel was acknowledged"


def _bytes(lines: list[Line]) -> Iterator[str]:
    """Every artifact and every download verifies, and every file that was accepted is there, and does too."""
    for line in _of(lines, "store", "file"):
        if not line["verified"]:
            yield f"{line['file']} was accepted and is lost, or does not verify"
    for line in _of(lines, "store", "artifact"):
        if not line["verified"]:
            yield f"artifact {line['sha256']} does not verify"
    for line in _of(lines, "visitor", "download"):
        if line["status"] == _OK and not line["verified"]:
            yield f"{line['name']} was served with other bytes"


def _left(lines: list[Line]) -> Iterator[str]:
    """Nothing runs on, and nothing stands still."""
    for line in _of(lines, "system", "orphan"):
        yield f"process {line['pid']} outlived its stage: {line['command']}"
    for line in _of(lines, "system", "unfinished"):
        yield f"{line['job']} did not end: it is {line['status']}"


def _of(lines: list[Line], who: str, did: str) -> Iterator[Line]:
    return (line for line in lines if line["who"] == who and line["did"] == did)
