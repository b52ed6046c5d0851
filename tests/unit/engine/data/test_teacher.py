"""Corrections by a teacher, over a real connection: retried, kept, counted, and judged before they are believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from allo_engine.config import Teacher
from allo_engine.data.asking import ATTEMPTS, FAILURES
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup
from allo_engine.data.teacher import Corrections
from allo_engine.report import Report, StageError, Stopped
from tests.teacher import teacher
from tests.unit.engine.conftest import Lines

RIGHT = "2 + 2 = 4. The answer is 4"
NEAREST = "The answer is 4"


@pytest.fixture
def encoder(model_folder: Path) -> Encoder:
    return Encoder.of(model_folder)


def group(encoder: Encoder, *wrong: str) -> NegativeGroup:
    """A problem whose right answer is known, with wrong responses and their nearest right one."""
    responses = [encoder.response(text) for text in wrong]
    return NegativeGroup("2 + 2?", RIGHT, encoder.prompt("2 + 2?"), responses, [encoder.response(NEAREST)] * len(wrong))


def written(encoder: Encoder, found: list[NegativeGroup]) -> list[str]:
    return [encoder.decode(ids) for each in found for ids in each.corrections]


def corrections(url: str, encoder: Encoder, cache: Path, key: str | None = None, **more: Any) -> Corrections:
    return Corrections(Teacher(base_url=url, model="t", **more), key, cache, encoder, Report(Lines()))


def test_errors_that_pass_are_retried_and_every_answer_is_paid_for_once(tmp_path: Path, encoder: Encoder) -> None:
    troubles = [500, 429, 503]

    def answering(_: str, before: int) -> tuple[int, Any]:
        return (troubles[before], {"error": "later"}) if before < len(troubles) else (200, RIGHT)

    groups = [group(encoder, "The answer is 5", "The answer is 6")]
    with teacher(answering) as server:
        first = corrections(server.url, encoder, tmp_path, key="secret")
        assert written(encoder, first.write(groups)) == [RIGHT, RIGHT]
        assert first.counts == {"asked": 2, "answered": 2, "cached": 0, "failed": 0, "unusable": 0, "tokens": 14}
        assert len(server.questions) == 8
        again = corrections(server.url, encoder, tmp_path, key="secret")
        assert written(encoder, again.write(groups)) == [RIGHT, RIGHT]
        assert again.counts == {"asked": 0, "answered": 0, "cached": 2, "failed": 0, "unusable": 0, "tokens": 0}
        assert len(server.questions) == 8
        assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
        assert "2 + 2?" in server.questions[0]
        assert any("The answer is 5" in question for question in server.questions)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The answer is 5",
        "The answer is 7",
        "I do not know.",
        {"choices": [{"message": {"content": RIGHT}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]},
    ],
)
def test_an_answer_that_is_no_correction_leaves_the_nearest_right_response(
    tmp_path: Path, encoder: Encoder, answer: Any
) -> None:
    with teacher(lambda *_: (200, answer)) as server:
        asked = corrections(server.url, encoder, tmp_path)
        assert written(encoder, asked.write([group(encoder, "The answer is 5")])) == [NEAREST]
    assert asked.metrics()["teacher_unusable"] == 1


def test_a_question_that_never_gets_an_answer_fails_alone(tmp_path: Path, encoder: Encoder) -> None:
    with teacher(lambda question, _: (500, {}) if "is 5" in question else (200, RIGHT)) as server:
        asked = corrections(server.url, encoder, tmp_path)
        found = asked.write([group(encoder, "The answer is 5", "The answer is 6")])
        assert written(encoder, found) == [NEAREST, RIGHT]
        assert len(server.questions) == ATTEMPTS + 1
    assert (asked.counts["failed"], asked.counts["answered"]) == (1, 1)


def test_an_endpoint_that_answers_nothing_ends_the_stage(tmp_path: Path, encoder: Encoder) -> None:
    with teacher(lambda *_: (200, {"no": "answer"})) as server:
        asked = corrections(server.url, encoder, tmp_path, concurrency=1)
        with pytest.raises(StageError) as caught:
            asked.write([group(encoder, *(f"The answer is {number}" for number in range(5, 25)))])
        assert caught.value.code == "teacher_unavailable"
        assert asked.counts["failed"] == FAILURES


@pytest.mark.parametrize(("status", "word"), [(401, "ALLO_TEACHER_API_KEY"), (404, "reward_model.corrections")])
def test_a_refusal_is_not_retried_and_says_what_to_change(
    tmp_path: Path, encoder: Encoder, status: int, word: str
) -> None:
    with teacher(lambda *_: (status, {"error": "no such thing"})) as server:
        with pytest.raises(StageError, match=word) as caught:
            corrections(server.url, encoder, tmp_path, concurrency=1).write([group(encoder, "The answer is 5")])
        assert "no such thing" in caught.value.message
        assert len(server.questions) == 1


def test_a_stop_is_heard_and_what_was_answered_is_kept(tmp_path: Path, encoder: Encoder) -> None:
    groups = [group(encoder, *(f"The answer is {number}" for number in range(5, 15)))]
    with teacher(lambda *_: (200, RIGHT)) as server:
        asked = corrections(server.url, encoder, tmp_path, concurrency=1)
        report = Report(Lines())
        stopping = Corrections(Teacher(base_url=server.url, model="t", concurrency=1), None, tmp_path, encoder, report)

        def answering(_: str, __: int) -> tuple[int, Any]:
            report.stop_requested = len(server.questions) >= 4
            return 200, RIGHT

        server.answering = answering
        with pytest.raises(Stopped):
            stopping.write(groups)
        assert len(server.questions) == 4
        asked.write(groups)
    assert (asked.counts["cached"], asked.counts["asked"]) == (4, 6)


@pytest.mark.parametrize("url", ["ftp://host/v1", "file:///etc/passwd", "host/v1", "https://key@host/v1", "http://"])
def test_only_plain_http_addresses_without_credentials_name_a_teacher(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Teacher(base_url=url, model="t")
