"""An owner's files: taken in and checked, read, deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from service.datasets.apart import checking
from service.datasets.containers import is_simple
from service.datasets.validation import Limits, LineProblem, Summary, validate
from service.db import Database
from service.jobs import repository
from service.jobs.data import quota
from service.jobs.errors import InvalidRequest, NotFound, TooLarge
from service.jobs.ids import new_id
from service.jobs.repository import Page
from service.jobs.tables import File
from service.storage.store import Blob, Store, Writer, lines_of

PURPOSE = "fine-tune"

HERE = 2**20
"""A file of fewer bytes is checked in a few milliseconds, unless it is larger than it looks: in this process."""


@dataclass(frozen=True)
class FileLimits:
    """What a training file may measure, in bytes: all of it, and a line of it."""

    bytes: int
    line_bytes: int


@dataclass(frozen=True)
class Content:
    """A training file's content: stored, and what was found in it. `report` names every problem, if any; `data` is
    what to train on, where that is not the file itself."""

    blob: Blob
    summary: Summary
    report: Blob | None
    data: Blob | None


@dataclass(frozen=True)
class NewFile:
    """How a file is to be known. `lifetime` is in seconds."""

    owner: str
    filename: str
    lifetime: int | None = None


class _Kept(Iterator[bytes]):
    """Chunks that are stored as they are read. No generator: who reads but a part of it does not end it."""

    def __init__(self, chunks: Iterator[bytes], writer: Writer, limit: int) -> None:
        self._chunks, self._writer, self._limit, self._size = chunks, writer, limit, 0

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._size += self._writer.write(chunk)
        if self._size > self._limit:
            raise TooLarge(f"The file is larger than {self._limit} bytes, which is all that this service takes.")
        return chunk


def take_in(store: Store, chunks: Iterator[bytes], limits: FileLimits) -> Content:
    """Stores and checks a training file in one pass, as its bytes come. Raises TooLarge, DiskFull, and what `chunks`
    raises: then nothing of it is kept."""
    with store.writing() as content, store.writing() as report, store.writing() as data:
        kept = _Kept(chunks, content, limits.bytes)
        bounds = Limits(limits.line_bytes, limits.bytes, store.scratch)
        begun = _begun(kept)
        if is_simple(begun) and sum(map(len, begun)) < HERE:
            summary = validate(begun, report, data, bounds)
        else:
            with checking(report, data, bounds) as check:
                for chunk in chain(begun, kept):
                    check.write(chunk)
                summary = check.summary()
        if summary.too_large:
            raise TooLarge(
                f"The file is more than {limits.bytes} bytes once it is read, which is all that is taken here."
            )
        is_bad = bool(summary.problem_count)
        return Content(
            blob=content.commit(),
            summary=summary,
            report=report.commit() if is_bad else None,
            data=data.commit() if summary.converted and not is_bad else None,
        )


def _begun(kept: Iterator[bytes]) -> list[bytes]:
    """What a file begins with: all of it, where it is smaller than `HERE`."""
    found, size = list[bytes](), 0
    for chunk in kept:
        found.append(chunk)
        size += len(chunk)
        if size >= HERE:
            break
    return found


def new_file(new: NewFile, content: Content, now: int) -> File:
    """The row of a content that is stored, to be a file of the owner.

    A file with problems is kept too, with status `error`, so that its report has a place; no job takes it.
    """
    blob, summary = content.blob, content.summary
    file = File(id=new_id("file"), owner=new.owner, purpose=PURPOSE, filename=new.filename[-255:], created_at=now)
    file.bytes, file.sha256 = blob.size, blob.sha256
    file.report_sha256 = content.report.sha256 if content.report else None
    if content.data:
        file.data_sha256, file.data_bytes = content.data.sha256, content.data.size
    file.format, file.rows = summary.format, summary.rows
    file.form, file.container, file.duplicates = summary.form, summary.container, summary.duplicates
    file.lines_without_solution = list(summary.lines_without_solution)
    file.status, file.status_details = _status(summary)
    file.expires_at = None if new.lifetime is None else now + new.lifetime
    return file


def add_file(database: Database, new: NewFile, content: Content, max_owner_bytes: int = 0) -> File:
    """Makes a content that is stored a file of the owner. Raises QuotaExceeded."""
    with database.transaction() as session:
        now = database.now()
        file = new_file(new, content, now)
        session.add(file)
        quota.check(session, new.owner, max_owner_bytes, now)
        return file


def read_file(database: Database, owner: str, file_id: str) -> File:
    """The file. Raises NotFound."""
    with database.snapshot() as session:
        file = repository.file(session, owner, file_id, database.now())
        if file is None:
            raise NotFound(f"No file {file_id!r}.")
        return file


def read_files(
    database: Database, owner: str, page: Page, purpose: str | None, sha256: str | None = None
) -> tuple[list[File], bool]:
    """Files, all or those of a content, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        return repository.files(session, owner, page, purpose, sha256, database.now())


def report_of(file: File) -> str:
    """The blob with every problem of a bad file. Raises NotFound."""
    if file.report_sha256 is None:
        raise NotFound(f"File {file.id!r} has no report: nothing in it is wrong.")
    return file.report_sha256


def problems_of(store: Store, file: File, start: int, most: int) -> list[LineProblem]:
    """Some of the problems of a bad file, from the one of place `start` on; none of a good one."""
    if file.report_sha256 is None:
        return []
    told = islice(lines_of(store.open(file.report_sha256)), start, start + most)
    return [LineProblem(**json.loads(line)) for line in told]


def delete_file(database: Database, owner: str, file_id: str) -> None:
    """Forgets the file. Unfinished jobs that were submitted with it keep the content that they began with. Raises
    NotFound."""
    with database.transaction() as session:
        file = repository.file(session, owner, file_id, database.now())
        if file is None:
            raise NotFound(f"No file {file_id!r}.")
        session.delete(file)


def check_purpose(purpose: str) -> None:
    """Raises InvalidRequest for a purpose that this service has no use for."""
    if purpose != PURPOSE:
        raise InvalidRequest(f"Purpose must be {PURPOSE!r}, not {purpose!r:.60}.", "purpose")


def _status(summary: Summary) -> tuple[str, str | None]:
    if not summary.problem_count:
        return "processed", None
    first = "; ".join(str(problem) for problem in summary.shown[:3])
    count = summary.problem_count
    return "error", f"{count} problem{'s' if count > 1 else ''}: {first}{'; …' if count > 3 else '.'}"
