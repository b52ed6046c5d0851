"""The list of jobs: what it shows to whom, and how it is searched."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.event import listen

from service.jobs import service
from service.jobs.tables import Job, Stage
from tests.integration.pages.conftest import SignIn
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain

PAGE = "/ui/jobs"


def shown(browser: TestClient, query: str = "") -> list[str]:
    """The names of the jobs that a page lists, in its order."""
    answer = browser.get(f"{PAGE}{query}")
    assert answer.status_code == 200, answer.text
    return re.findall(r'<th scope="row" class="name(?: id)?">(?:<a [^>]*>)?([^<]*)<', answer.text)


@pytest.fixture
def named(served: Domain) -> list[str]:
    """Jobs by their suffixes, oldest first: a stranger's, and three of the owner's, of which one has ended."""
    for suffix, new, owner in (
        ("theirs", SUPERVISED, "stranger"),
        ("ended", SUPERVISED, OWNER),
        ("waiting", ALLO, OWNER),
        ("noted", replace(SUPERVISED, metadata={"project": "größer"}), OWNER),
    ):
        files = {name: served.add_file(f"file-{suffix}-{name}", owner=owner) for name in ("t", "v")}
        new = replace(new, training_file=files["t"], validation_file=files["v"], suffix=suffix)
        job = served.submit(new, served.sender(owner=owner)).job
        if suffix == "ended":
            service.cancel(served.database, OWNER, job.id)
    return ["theirs", "ended", "waiting", "noted"]


def test_a_reader_sees_their_own_jobs_newest_first(sign_in: SignIn, named: list[str]) -> None:
    reader = sign_in(OWNER, "read")
    assert shown(reader) == ["noted", "waiting", "ended"]
    assert "theirs" not in reader.get(f"{PAGE}?owner=stranger").text
    assert shown(reader, "?owner=stranger") == ["noted", "waiting", "ended"]


def test_an_admin_sees_everybodys_and_opens_their_own(browser: TestClient, named: list[str]) -> None:
    assert shown(browser) == named[::-1]
    assert shown(browser, "?owner=stranger") == ["theirs"]
    page = browser.get(PAGE).text
    assert len(re.findall(r'href="/ui/jobs/ftjob-', page)) == page.count('type="checkbox"') == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=cancelled", ["ended"]),
        ("status=queued&method=supervised", ["noted"]),
        ("method=allo", ["waiting"]),
        ("model=tiny", ["noted", "waiting", "ended"]),
        ("model=none", []),
        ("text=WAIT", ["waiting"]),
        ("text=gr%C3%B6%C3%9F", ["noted"]),
        ("text=file-ended-t", ["ended"]),
        ("text=%25", []),
        ("text=%20noted%20&status=&method=", ["noted"]),
    ],
)
def test_jobs_are_found_by_what_they_are(sign_in: SignIn, named: list[str], query: str, expected: list[str]) -> None:
    assert shown(sign_in(OWNER, "read"), f"?{query}") == expected


def test_a_status_that_there_is_not_is_told(browser: TestClient) -> None:
    answer = browser.get(f"{PAGE}?status=sleeping")
    assert (answer.status_code, "queued, running" in answer.text) == (422, True)


def many(served: Domain, count: int) -> None:
    """Jobs of the owner, the last one as submit makes it and the others like it."""
    with served.database.snapshot() as session:
        view = served.submit(ALLO)
        job, stages = session.get_one(Job, view.job.id), view.stages
        like = {column.name: getattr(job, column.name) for column in Job.__table__.columns if column.name != "metadata"}
        of = [{column.name: getattr(stage, column.name) for column in Stage.__table__.columns} for stage in stages]
    numbers = [f"{number:026}" for number in range(count)]
    with served.database.transaction() as session:
        session.execute(Job.__table__.insert(), [{**like, "id": f"ftjob-{number}"} for number in numbers])
        session.execute(
            Stage.__table__.insert(),
            [
                {**stage, "id": f"stage-{number}-{stage['position']}", "job_id": f"ftjob-{number}"}
                for number in numbers[-200:]
                for stage in of
            ],
        )


def test_a_long_list_comes_in_parts_and_a_part_stays_small(sign_in: SignIn, served: Domain) -> None:
    many(served, 120)
    reader, query, seen = sign_in(OWNER, "read"), "", []
    while True:
        answer = reader.get(f"{PAGE}{query}")
        assert len(answer.content) < 200_000
        seen += shown(reader, query)
        older = re.search(r'href="(\?after=[^"]*)" rel="next"', answer.text)
        if older is None:
            break
        query = older.group(1)
    assert len(seen) == len(set(seen)) == 121


def test_a_list_of_many_asks_the_database_as_often_as_one_of_few(sign_in: SignIn, served: Domain) -> None:
    asked: list[str] = []
    listen(served.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    reader = sign_in(OWNER, "read")

    def statements() -> int:
        del asked[:]
        assert reader.get(PAGE).status_code == 200
        return len(asked)

    served.submit(SUPERVISED)
    few = statements()
    many(served, 60)
    assert statements() == few


def test_what_a_filter_asked_for_is_asked_for_of_older_jobs_too(sign_in: SignIn, served: Domain) -> None:
    many(served, 60)
    text = sign_in(OWNER, "read").get(f"{PAGE}?method=allo&text=ftjob").text
    assert re.search(r'href="\?after=ftjob-[^"&]*&amp;text=ftjob&amp;method=allo" rel="next"', text)
