"""A training's figures over its steps, from the events that told them, and in the forms in which people plot them."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from service.db import Database
from service.jobs import repository
from service.jobs.errors import NotFound

FIRST = ("stage", "step", "steps", "created_at")
"""The columns that every point has; the figures follow."""

_POLYNOMIAL = 0x82F63B78
"""Of CRC-32C (Castagnoli), reflected: what TFRecord files are checked with."""


@dataclass(frozen=True)
class Point:
    """What a stage told of one step."""

    stage: str
    step: int
    steps: int | None
    created_at: int
    values: Mapping[str, float]


def read(database: Database, owner: str, job_id: str, stage: str | None) -> list[Point]:
    """A job's points by stage and step; where a step ran again after a break, its last run counts. Raises NotFound for
    an absent job, and for a stage that it has not."""
    with database.snapshot() as session:
        if repository.job(session, owner, job_id) is None:
            raise NotFound(f"No fine-tuning job {job_id!r}.")
        names = [row.name for row in repository.stages(session, [job_id])]
        if stage is not None and stage not in names:
            raise NotFound(f"The job has no stage {stage!r}; it has {', '.join(names)}.", "stage")
        found: dict[tuple[str, int], Point] = {}
        for event in repository.metric_events(session, job_id):
            point = _point(event.data, event.created_at)
            if point is not None and stage in (None, point.stage):
                found[point.stage, point.step] = point
    return sorted(found.values(), key=lambda point: (names.index(point.stage), point.step))


def _point(data: Mapping[str, object], created_at: int) -> Point | None:
    stage, step, steps = (data.get(name) for name in ("stage", "step", "steps"))
    if not isinstance(stage, str) or not isinstance(step, int):
        return None
    values = {
        name: float(value)
        for name, value in data.items()
        if isinstance(value, int | float) and name not in ("step", "steps", "total")
    }
    return Point(stage, step, steps if isinstance(steps, int) else None, created_at, values)


def as_csv(points: Sequence[Point]) -> bytes:
    """A row a point; a figure that a stage does not have is left empty."""
    names = sorted({name for point in points for name in point.values})
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*FIRST, *names])
    for point in points:
        first = [point.stage, point.step, "" if point.steps is None else point.steps, point.created_at]
        rows.writerow([*first, *(point.values.get(name, "") for name in names)])
    return text.getvalue().encode()


def as_event_file(points: Sequence[Point]) -> bytes:
    """A TensorBoard event file: TFRecords of Event messages (tensorboard/compat/proto/event.proto), a scalar
    `stage/figure` each."""
    started = float(points[0].created_at) if points else 0.0
    records = [_double(1, started) + _bytes(3, b"brain.Event:2")]
    for point in points:
        scalars = b"".join(_scalar(f"{point.stage}/{name}", value) for name, value in sorted(point.values.items()))
        records.append(_double(1, float(point.created_at)) + _varint(2 << 3) + _varint(point.step) + _bytes(5, scalars))
    return b"".join(map(_record, records))


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
    """CRC-32C, turned and moved as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _entries() -> Iterator[int]:
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (_POLYNOMIAL if number & 1 else 0)
        yield number


_TABLE = (*_entries(),)
