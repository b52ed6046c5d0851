"""Masks that one job made and another trains in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from openai import OpenAI
from sqlalchemy import delete

from allo_engine.pipeline import PlanError
from service.cli import main
from service.jobs import service
from service.jobs.access.keys import create_key
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.running import attempts
from service.jobs.submission import NewJob
from service.jobs.tables import Artifact, Event, Job, Stage
from tests.integration.service.domain import ALLO, OWNER, Domain, stage_by_name

IN_MASKS = ["sample", "pair", "reward_model", "token_rewards", "forget", "improve", "evaluate"]


def located(domain: Domain, new: NewJob = ALLO, masks: bytes = b"some masks") -> str:
    """The id of a finished job whose masks have this content."""
    domain.made["locate"] = domain.store.put_stream([masks])
    job_id = domain.submit(new).job.id
    domain.run_all()
    return job_id


def file_of(domain: Domain, job_id: str, output: str) -> Artifact:
    return next(row for row in domain.view(job_id).artifacts if row.output == output)


def in_masks(masks: str, **changes: object) -> NewJob:
    return replace(ALLO, masks=masks, **changes)  # type: ignore[arg-type]


def test_a_job_in_given_masks_trains_there_and_locates_none(domain: Domain) -> None:
    first = located(domain)
    mask = file_of(domain, first, "masks")
    for name in (first, mask.id):
        view = domain.submit(in_masks(name, seed=1))
        assert (view.job.masks, [stage.name for stage in view.stages]) == (name, IN_MASKS)
        assert view.job.sources["masks"] == [["data.bin", mask.sha256, mask.bytes]]
    assert stage_by_name(domain, view.job.id, "evaluate").inputs.keys() == {"heldout", "base", "forget", "improve"}
    while (claimed := domain.claim()).name != "forget":
        domain.finish(claimed)
    assert claimed.inputs["masks"] == (("data.bin", mask.sha256, mask.bytes),)
    domain.finish(claimed)
    domain.run_all()
    assert domain.view(view.job.id).job.status == "succeeded"


def test_what_was_trained_in_the_same_masks_is_not_trained_again(domain: Domain) -> None:
    first = located(domain)
    second = domain.submit(in_masks(first)).job.id
    assert domain.run_all() == ["evaluate"]  # of fewer models: there is no warm-up among them
    assert domain.submit(in_masks(file_of(domain, first, "masks").id)).job.status == "succeeded"
    assert domain.submit(in_masks(second)).job.status == "succeeded"  # the masks that it trained in itself
    domain.submit(in_masks(first, stages={"improve": {"beta": 0.2}}))
    assert domain.run_all() == ["improve"]


def test_other_masks_are_another_result(domain: Domain) -> None:
    first = located(domain)
    other = located(domain, replace(ALLO, stages={"locate": {"importance": "random"}}), b"other masks")
    jobs = [domain.submit(in_masks(name, seed=1)).job.id for name in (first, other)]
    computed = domain.run_all()
    assert (computed.count("token_rewards"), computed.count("forget"), computed.count("improve")) == (1, 2, 2)
    digests = {stage_by_name(domain, job_id, "forget").digest for job_id in jobs}
    assert len(digests) == 2


def test_masks_that_were_themselves_reused_can_be_named(domain: Domain) -> None:
    located(domain)
    again = domain.submit(ALLO)
    assert all(stage.reused_from for stage in again.stages)
    mask = file_of(domain, again.job.id, "masks")
    assert domain.submit(in_masks(mask.id, seed=1)).job.sources["masks"][0][1] == domain.made["locate"].sha256


def test_masks_outlive_the_rows_of_the_job_that_made_them(domain: Domain) -> None:
    first = located(domain)
    second = domain.submit(in_masks(first, seed=1)).job.id
    made = [stage.id for stage in domain.view(first).stages]
    with domain.database.transaction() as session:
        session.execute(delete(Artifact).where(Artifact.stage_id.in_(made)))
        for table in (Stage, Event):
            session.execute(delete(table).where(table.job_id == first))
        session.execute(delete(Job).where(Job.id == first))
    domain.run_all()
    assert domain.view(second).job.status == "succeeded"
    assert domain.submit(in_masks(second, seed=2)).job.sources["masks"] == domain.view(second).job.sources["masks"]


def test_a_job_that_failed_after_locating_still_has_its_masks(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    while (claimed := domain.claim()).name != "forget":
        domain.finish(claimed)
    attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "diverged", "Lower the rate.", False)
    assert domain.view(job_id).job.status == "failed"
    assert domain.submit(in_masks(job_id, seed=1)).job.status == "queued"


def test_a_log_ratio_in_given_masks_keeps_the_warm_up_that_it_reads(domain: Domain) -> None:
    stages = {"token_rewards": {"source": "log_ratio"}}
    view = domain.submit(in_masks(located(domain), seed=1, stages=stages))
    assert "warmup" in domain.statuses(view.job.id)
    assert "warmup" in stage_by_name(domain, view.job.id, "evaluate").inputs


def test_another_owners_masks_are_as_absent_as_those_that_never_were(domain: Domain) -> None:
    first = located(domain)
    domain.add_key("key-2", "stranger")
    for name in ("train", "heldout"):
        domain.add_file(f"file-{name}-2", owner="stranger")
    stranger = domain.sender(owner="stranger")
    theirs = replace(ALLO, training_file="file-train-2", validation_file="file-heldout-2")
    messages = []
    for name in (first, file_of(domain, first, "masks").id, "ftjob-never", "art-never"):
        with pytest.raises(NotFound) as refused:
            domain.submit(replace(theirs, masks=name), stranger)
        assert (refused.value.param, refused.value.code) == ("masks", "masks_not_found")
        messages.append(refused.value.message.replace(name, "…"))
    assert len(set(messages)) == 1


def test_what_has_no_masks_says_what_to_name_instead(domain: Domain) -> None:
    waiting = domain.submit(ALLO).job.id
    refuse(domain, in_masks(waiting), "masks", "its stage locate is waiting")
    service.cancel(domain.database, OWNER, waiting)
    refuse(domain, in_masks(waiting), "masks", "retry the job")
    dpo = domain.submit(replace(ALLO, method="dpo")).job.id
    refuse(domain, in_masks(dpo), "masks", "name a job of method allo")
    domain.run_all()
    refuse(domain, in_masks(file_of(domain, dpo, "checkpoint").id), "masks", "a file that stage locate wrote")


def test_what_contradicts_given_masks_says_which_to_leave_out(domain: Domain) -> None:
    first = located(domain)
    refuse(domain, in_masks(first, method="dpo"), "masks", "leave masks out, or use method allo")
    contradiction = in_masks(first, stages={"locate": {"improve_ratio": 0.1}})
    refuse(domain, contradiction, "method.allo.stages.locate", "leave stages.locate out, or leave masks out")


def refuse(domain: Domain, new: NewJob, param: str, message: str) -> None:
    with pytest.raises((InvalidRequest, PlanError), match=re.escape(message)) as refused:
        domain.submit(new)
    assert refused.value.param == param


# --- over HTTP


@pytest.fixture
def client(base_url: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        yield client


def test_the_masks_that_a_jobs_stage_lists_can_be_named_in_the_next_job(client: OpenAI, served: Domain) -> None:
    first = client.fine_tuning.jobs.retrieve(located(served)).model_dump()
    locate = next(stage for stage in first["stages"] if stage["name"] == "locate")
    for name in (first["id"], locate["artifacts"][0]["id"]):
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file="file-train",
            validation_file="file-heldout",
            seed=1,
            extra_body={"masks": name, "method": {"type": "allo"}},
        )
        answer = client.fine_tuning.jobs.retrieve(job.id).model_dump()
        assert (answer["masks"], [stage["name"] for stage in answer["stages"]]) == (name, IN_MASKS)
        assert "locate" not in answer["method"]["allo"]["stages"]
    assert first["masks"] is None


def test_masks_that_are_not_there_are_a_404_for_the_field(client: OpenAI, base_url: str, served: Domain) -> None:
    for name in (located(served), "ftjob-never"):
        stranger = create_key(served.database, "stranger").secret
        served.add_file(f"file-{name[-8:]}", owner="stranger")
        with pytest.raises(openai.NotFoundError) as refused:
            client.with_options(api_key=stranger).fine_tuning.jobs.create(
                model="tiny",
                training_file=f"file-{name[-8:]}",
                extra_body={"masks": name, "method": {"type": "allo"}},
            )
        assert (refused.value.param, refused.value.code) == ("masks", "masks_not_found")


def test_allo_submit_passes_masks_on(
    base_url: str, secret: str, served: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    first = located(served)
    where = ["--url", base_url.removesuffix("/v1"), "--api-key", secret]
    command = ["submit", "file-train", "--model", "tiny", "--method", "allo", "--seed", "1", *where]
    assert main([*command, "--masks", first]) == 0
    job_id = capsys.readouterr().out.strip()
    assert served.view(job_id).job.masks == first
    assert "locate" not in served.statuses(job_id)
    assert main([*command, "--masks", "ftjob-never"]) == 1
    assert "[masks]" in capsys.readouterr().err
