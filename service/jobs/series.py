"""A training's figures over its steps, from the events that told them, and in the forms in which people plot them.

A day of training tells a hundred thousand points. They are never held all at once: it is looked up where each stands,
and then they are read a few hundred at a time.
"""

from __future__ import annotations

import csv
import io
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google_crc32c import value as crc32c
from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.errors import NotFound
from service.jobs.repository import told
from service.jobs.tables import Job

FIRST = ("stage", "step", "steps", "created_at")
"""The columns that every point has; the figures follow."""

_AT_ONCE = 500


@dataclass(frozen=True)
class Point:
    """What a stage told of one step."""

    stage: str
    step: int
    steps: int | None
    created_at: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """The points of a job, by stage and step. Going through it reads them, some at a time.

    `names` are the figures that they have, `seqs` the events that tell them, `began` when the job was made.
    """

    database: Database
    job_id: str
    began: int
    seqs: Sequence[int]
    names: Sequence[str]

    def __iter__(self) -> Iterator[list[Point]]:
        for start in range(0, len(self.seqs), _AT_ONCE):
            seqs = self.seqs[start : start + _AT_ONCE]
            with self.database.snapshot() as session:
                told = {seq: (data, at) for seq, data, at in repository.metrics(session, self.job_id, seqs)}
            points = [point for seq in seqs if seq in told and (point := read_point(*told[seq]))]
            if points:  # the job may have been deleted meanwhile
                yield points


def read(database: Database, owner: str, job_id: str, stage: str | None) -> Series:
    """A job's points, of one stage or of all; where a step ran again after a break, its last run counts. Raises
    NotFound for an absent job, and for a stage that it has not."""
    with database.snapshot() as session:
        job, stages = _stages(session, owner, job_id)
        if stage is not None and stage not in stages:
            raise NotFound(f"The job has no stage {stage!r}; it has {', '.join(stages)}.", "stage")
        found: dict[str, dict[int, int]] = defaultdict(dict)
        names: set[str] = set()
        for seq, data, created_at in repository.metrics(session, job_id):
            point = read_point(data, created_at)
            if point is not None and stage in (None, point.stage):
                found[point.stage][point.step] = seq
                names.update(point.values)
    seqs = [found[name][step] for name in stages for step in sorted(found[name])]
    return Series(database, job_id, job.created_at, seqs, sorted(names))


def read_thinned(database: Database, owner: str, job_id: str, most: int) -> Series:
    """A job's points for the eye: of each stage at most `most`, evenly over its steps, its last one among them; `names`
    stays empty. Raises NotFound."""
    with database.snapshot() as session:
        job, stages = _stages(session, owner, job_id)
        found: dict[str, dict[int, int]] = {name: {} for name in stages}
        for seq, stage, step in told.metric_places(session, job_id):
            if stage in found and step is not None and step.isdigit():
                found[stage][int(step)] = seq
    seqs = [of_step[step] for of_step in found.values() for step in _evenly(sorted(of_step), most)]
    return Series(database, job_id, job.created_at, seqs, ())


def _evenly(steps: Sequence[int], most: int) -> Sequence[int]:
    if len(steps) <= most:
        return steps
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _stages(session: Session, owner: str, job_id: str) -> tuple[Job, list[str]]:
    job = repository.job(session, owner, job_id)
    if job is None:
        raise NotFound(f"No fine-tuning job {job_id!r}.")
    return job, [row.name for row in repository.stages(session, [job_id])]


def read_point(data: Mapping[str, object], created_at: int) -> Point | None:
    """What an event of metrics tells; None where it is of no step."""
    stage, step, steps = (data.get(name) for name in ("stage", "step", "steps"))
    if not isinstance(stage, str) or not isinstance(step, int):
        return None
    values = {
        name: float(value)
        for name, value in data.items()
        if isinstance(value, int | float) and name not in ("step", "steps", "total")
    }
    return Point(stage, step, steps if isinstance(steps, int) else None, created_at, values)


def as_csv(series: Series) -> Iterator[bytes]:
    """A row a point; a figure that a stage does not have is left empty."""
    yield _rows([[*FIRST, *series.names]])
    for points in series:
        yield _rows(
            [
                *(point.stage, point.step, "" if point.steps is None else point.steps, point.created_at),
                *(point.values.get(name, "") for name in series.names),
            ]
            for point in points
        )


def _rows(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def as_event_file(series: Series) -> Iterator[bytes]:
    """A TensorBoard event file: TFRecords of Event messages (tensorboard/compat/proto/event.proto), a scalar
    `stage/figure` each."""
    yield _record(_double(1, float(series.began)) + _bytes(3, b"brain.Event:2"))
    for points in series:
        yield b"".join(_record(_event(point)) for point in points)


def _event(point: Point) -> bytes:
    scalars = b"".join(_scalar(f"{point.stage}/{name}", value) for name, value in sorted(point.values.items()))
    return _double(1, float(point.created_at)) + _varint(2 << 3) + _varint(point.step) + _bytes(5, scalars)


def _scalar(tag: str, value: float) -> bytes:
    """A Summary.Value with `tag` and `simple_value`, as a field of its Summary."""
    return _bytes(1, _bytes(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _record(content: bytes) -> bytes:
    """Length, its checksum, the content and its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C (Castagnoli), turned and moved as TFRecord has it."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
