"""An owner's files: uploaded and checked, read, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from service.datasets.validation import Limits, LineProblem, Summary, validate
from service.db import Database
from service.jobs import repository
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.ids import new_id
from service.jobs.repository import Page
from service.jobs.tables import File
from service.storage.store import CHUNK, Store

PURPOSE = "fine-tune"


@dataclass(frozen=True)
class Upload:
    """A file as it was stored, and the first of its problems. Without any, it can be trained on."""

    file: File
    problems: tuple[LineProblem, ...]


def add_file(
    database: Database,
    store: Store,
    owner: str,
    filename: str,
    stream: IO[bytes],
    max_line_bytes: int,
    lifetime: int | None = None,
) -> Upload:
    """Checks and stores a training file.

    A file with problems is kept too, with status `error`, so that its report has a place; no job takes it.
    """
    with TemporaryFile() as report, TemporaryFile() as data:
        summary = validate(_chunks(stream), report, data, Limits(max_line_bytes, 512 * 2**20))
        stream.seek(0)
        blob = store.put_stream(_chunks(stream))
        report.seek(0)
        report_sha256 = store.put_stream(_chunks(report)).sha256 if summary.problem_count else None
        data.seek(0)
        converted = store.put_stream(_chunks(data)) if summary.converted and not summary.problem_count else None
    file = File(id=new_id("file"), owner=owner, purpose=PURPOSE, filename=filename[-255:], created_at=database.now())
    file.bytes, file.sha256, file.report_sha256 = blob.size, blob.sha256, report_sha256
    file.format, file.rows = summary.format, summary.rows
    file.form, file.container, file.duplicates = summary.form, summary.container, summary.duplicates
    if converted:
        file.data_sha256, file.data_bytes = converted.sha256, converted.size
    file.lines_without_solution = list(summary.lines_without_solution)
    file.status, file.status_details = _status(summary)
    file.expires_at = None if lifetime is None else file.created_at + lifetime
    with database.transaction() as session:
        session.add(file)
    return Upload(file, summary.shown)


def read_file(database: Database, owner: str, file_id: str) -> File:
    """The file. Raises NotFound."""
    with database.snapshot() as session:
        file = repository.file(session, owner, file_id, database.now())
        if file is None:
            raise NotFound(f"No file {file_id!r}.")
        return file


def read_files(database: Database, owner: str, page: Page, purpose: str | None) -> tuple[list[File], bool]:
    """Files, and whether there are more. `page.after` may have been deleted meanwhile: ids sort by their time."""
    if page.after is not None and not page.after.startswith("file-"):
        raise NotFound(f"No file {page.after!r} to go on after.", "after")
    with database.snapshot() as session:
        return repository.files(session, owner, page, purpose, database.now())


def report_of(file: File) -> str:
    """The blob with every problem of a bad file. Raises NotFound."""
    if file.report_sha256 is None:
        raise NotFound(f"File {file.id!r} has no report: nothing in it is wrong.")
    return file.report_sha256


def delete_file(database: Database, owner: str, file_id: str) -> None:
    """Forgets the file. Jobs that were submitted with it keep the content that they began with. Raises NotFound."""
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


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(CHUNK), b"")
