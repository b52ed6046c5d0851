"""What a job learned, read from what its stages left."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from service.jobs import learned
from service.jobs.errors import Conflict
from service.jobs.learned import Answer, Token
from service.jobs.tables import Artifact
from tests.integration.service.domain import ALLO, SUPERVISED, Domain
from tests.integration.service.taught import RESPONSE, RIGHT, WHERE, taught


@pytest.fixture(params=["sqlite"])
def database_url(database_url: str) -> str:
    """One database: what is asked of it, other tests ask of both."""
    return database_url


def test_a_job_tells_where_its_masks_lie_and_so_does_one_that_trains_in_them(domain: Domain) -> None:
    first = taught(domain)
    second = taught(domain, masks=first, stages={"warmup": {}})
    for job in (first, second):
        assert learned.where(domain.store, domain.view(job)) == WHERE["layers"]


def test_a_token_is_forgotten_as_the_jobs_own_setting_says_and_an_end_never_is(domain: Domain) -> None:
    (found,) = learned.responses(domain.store, domain.view(taught(domain)))
    assert (found.problem, found.length) == (RESPONSE["problem"], 4)
    assert found.tokens[1:] == [Token(" is", 0.5, 0.0), Token(" 3", 0.04, 1.0), Token("<|end|>", 0.01, 0.0)]
    softly = taught(domain, stages={"forget": {"weights": "one_minus"}})
    (found,) = learned.responses(domain.store, domain.view(softly))
    assert [token.weight for token in found.tokens] == pytest.approx([0.1, 0.5, 0.96, 0.0])


def test_answers_that_changed_are_told_with_both_texts_in_the_order_of_their_cases(domain: Domain) -> None:
    view = domain.view(taught(domain))
    report = learned.report(domain.store, view)
    assert report is not None
    assert [row["model"] for row in report["models"]] == list(RIGHT)
    changed = learned.changes(report, "improve", "sft")  # 1101 against 1010
    assert changed == {1: "gained", 2: "lost", 3: "gained"}
    first = {place: changed[place] for place in (1, 2)}
    assert list(learned.answers(domain.store, view, first, "improve", "sft")) == [
        Answer("gained", "ask case-1", "improve says case-1", "sft says case-1"),
        Answer("lost", "ask case-2", "improve says case-2", "sft says case-2"),
    ]
    assert learned.changes(report, "base", "base") == {}
    assert list(learned.answers(domain.store, view, {}, "improve", "sft")) == []


def test_a_report_without_right_and_wrong_has_no_changes(domain: Domain) -> None:
    report = {"models": [{"model": "base", "losses": [1.0]}, {"model": "improve", "losses": [0.5]}], "cases": ["a"]}
    assert learned.changes(report, "improve", "base") == {}


def test_of_a_job_that_has_yet_to_run_and_of_one_of_another_method_there_is_nothing(domain: Domain) -> None:
    for new in (ALLO, SUPERVISED):
        view = domain.view(domain.submit(new).job.id)
        assert learned.where(domain.store, view) is None
        assert learned.report(domain.store, view) is None
        assert learned.responses(domain.store, view) == []


def test_a_report_that_is_too_large_to_look_at_is_not_read(domain: Domain) -> None:
    job = taught(domain)
    with domain.database.transaction() as session:
        session.execute(update(Artifact).where(Artifact.path == "report.json").values(bytes=learned.LARGEST + 1))
    with pytest.raises(Conflict, match="download"):
        learned.report(domain.store, domain.view(job))
