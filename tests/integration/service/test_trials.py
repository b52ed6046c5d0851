"""Which jobs a trial of `allo chaos` is judged by, on both databases."""

from __future__ import annotations

from service.chaos.trials import jobs_of_trial
from service.jobs import service
from service.jobs.tables import Job
from tests.integration.service.domain import OWNER, SUPERVISED, Domain


def test_a_trial_is_judged_by_all_its_jobs_though_a_wrong_clock_made_them_older_than_those_before(
    domain: Domain,
) -> None:
    for _ in range(12):
        service.cancel(domain.database, OWNER, domain.submit(SUPERVISED).job.id)
    heard, unheard = (domain.submit(SUPERVISED).job.id for _ in range(2))
    with domain.database.transaction() as session:
        for job in (heard, unheard):
            session.get_one(Job, job).created_at -= 30 * 86400
    judged = jobs_of_trial(domain.database, OWNER, [{"did": "submit", "status": 200, "job": heard}])
    assert {view.job.id for view in judged()} == {heard, unheard}
    domain.run_all()
    assert {view.job.status.value for view in judged()} == {"succeeded"}, "whose end came while the trial looked on"
