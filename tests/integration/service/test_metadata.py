"""Jobs found by their metadata: on both databases whatever a plain comparison in Python finds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.jobs import service
from service.jobs.repository import Page
from service.jobs.tables import Job
from tests.integration.service.domain import OWNER, SUPERVISED, Domain

WORDS = [
    "a",
    "A",
    "",
    'a"b',
    "a\\b",
    "a\\",
    "ü",
    "u\u0308",
    "😀",
    "\n",
    "a.b",
    "$",
    "$.a",
    "%",
    "_",
    "'",
    "{}",
    "null",
    "1",
]
WORDS += ['a" OR "1"="1', "a' OR '1'='1", '"', '$."a"', "\x7f", "\u2028", "[0]"]
TEXT = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
PAIRS = st.dictionaries(TEXT, TEXT, max_size=4)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(PAIRS, min_size=1, max_size=4), asked=PAIRS, data=st.data())
def test_a_filter_finds_what_has_its_very_pairs(
    domain: Domain, jobs: list[dict[str, str]], asked: dict[str, str], data: st.DataObject
) -> None:
    ids = known_jobs(domain)
    with domain.database.transaction() as session:
        for name in ids:
            session.get_one(Job, name).user_metadata = None
        for name, pairs in zip(ids, jobs, strict=False):
            session.get_one(Job, name).user_metadata = pairs
    some = data.draw(st.sampled_from(jobs))
    for wanted in (asked, some, dict(list(some.items())[:1])):
        found, _ = service.read_page(domain.database, OWNER, Page(order="asc"), wanted)
        right = [name for name, pairs in zip(ids, jobs, strict=False) if wanted.items() <= pairs.items()]
        assert [view.job.id for view in found] == (right if wanted else ids)


def known_jobs(domain: Domain) -> list[str]:
    """Four jobs, made with the first example."""
    found, _ = service.read_page(domain.database, OWNER, Page(order="asc"))
    if found:
        return [view.job.id for view in found]
    return [domain.submit(replace(SUPERVISED, seed=seed)).job.id for seed in range(4)]
