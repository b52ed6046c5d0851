"""What a log's line holds, and what never gets into one."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.access.keys import create_key
from service.logs import JsonLines, TextLines, bound

FORMS = [JsonLines(), TextLines()]
SECRETS = [
    "allo-5Cg3vJv0w2nq1rBq0m9dF4yZl1c8i7u6t5s4r3q2p1o",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "postgresql://allo:pa55word@host/db",
    "Bearer anything-at-all",
]


def record(message: str, *values: Any, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("worker.runner", logging.WARNING, "f.py", 1, message, values, info)


def raised(message: str) -> ValueError:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_an_event_is_its_name_its_fields_and_the_ids_that_are_bound() -> None:
    with bound(job_id="ftjob-1"):
        line = json.loads(JsonLines().format(record("stage_claimed stage_id=%s epoch=%s", "stage-1", 3)))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "worker.runner",
        "event": "stage_claimed",
        "job_id": "ftjob-1",
        "stage_id": "stage-1",
        "epoch": 3,
    }


def test_what_a_library_logs_is_a_message() -> None:
    line = json.loads(JsonLines().format(record("Started server process [%d]", 7)))
    assert line["message"] == "Started server process [7]"


def test_text_is_one_line_that_a_person_reads() -> None:
    line = TextLines().format(record("stage_ended stage_id=%s outcome=%s", "stage-1", "gave up"))
    assert line.endswith('WARNING worker.runner stage_ended stage_id=stage-1 outcome="gave up"')


def test_ids_are_of_their_block_alone() -> None:
    with bound(request_id="req-1"):
        pass
    other: list[str] = []
    thread = threading.Thread(target=lambda: other.append(JsonLines().format(record("quiet"))))
    thread.start()
    thread.join()
    assert "request_id" not in JsonLines().format(record("quiet")) + other[0]


@pytest.mark.parametrize("form", FORMS, ids=["json", "text"])
@given(
    text=st.text(st.characters(codec="utf-8")) | st.sampled_from(["\x1b[31m\r\n2026 ERROR forged", "a\u2028b\x85c\0"])
)
def test_no_value_makes_a_line_or_moves_the_cursor(form: logging.Formatter, text: str) -> None:
    for line in (form.format(record("request path=%s", text)), form.format(record("said %s here", text))):
        assert len(line.splitlines()) == 1
        assert line.isprintable()


def test_the_lines_of_a_traceback_cannot_be_taken_for_events() -> None:
    error = raised("one\n2026-01-01T00:00:00.000Z ERROR service forged\x1b[2J")
    first, *others = TextLines().format(record("request_failed", error=error)).split("\n")
    assert first.endswith("request_failed")
    assert all(line.startswith("    | ") and line.isprintable() for line in others)
    assert any("forged" in line for line in others)
    (line,) = JsonLines().format(record("request_failed", error=error)).split("\n")
    assert "forged" in json.loads(line)["traceback"]


@pytest.mark.parametrize("form", FORMS, ids=["json", "text"])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_written_wherever_it_stands(form: logging.Formatter, secret: str) -> None:
    canary = secret.split(":")[-1].split("@")[0].split()[-1]
    with bound(owner=secret):
        lines = [
            form.format(record("request path=%s", secret)),
            form.format(record("said %s here", secret)),
            form.format(record("request_failed", error=raised(secret))),
        ]
    assert not any(canary in line for line in lines)


def test_a_key_of_ours_looks_like_one(tmp_path: Any) -> None:
    from service.db import Database
    from service.migrating import migrate

    url = f"sqlite:///{tmp_path / 'keys.db'}"
    migrate(url)
    database = Database(url)
    secret = create_key(database, "owner").secret
    database.close()
    assert secret not in JsonLines().format(record("said %s", secret))
