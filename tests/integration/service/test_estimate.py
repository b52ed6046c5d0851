"""What a job will take, asked before it is submitted: counted by the engine, priced by the workers' rates."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from sqlalchemy import select, update

from allo_engine.model.shape import shape_of
from allo_engine.pipeline import Data, PlannedStage
from allo_engine.pipeline import plan as plan_of
from service.api.shapes.estimates import Estimate, SweepEstimate
from service.db import Base, Database
from service.jobs.access.keys import create_key
from service.jobs.errors import DomainError, InvalidRequest, QuotaExceeded, Unavailable
from service.jobs.forecast.counting import LEARNING_ONLY, Counts
from service.jobs.forecast.errands import Scratch
from service.jobs.forecast.expecting import Expectations, asked_again
from service.jobs.forecast.foresight import (
    Plan,
    Spread,
    StageForesight,
    Taking,
    foresee,
    notes,
    rates_to_try,
    spread,
    told,
    total,
)
from service.jobs.registry.models import register_model
from service.jobs.running import workers
from service.jobs.running.placement import Offer
from service.jobs.submission import NewJob
from service.jobs.sweeping import sweeps
from service.jobs.tables import File
from service.storage import open_store
from tests.integration.service.domain import ALLO, OWNER, WORKER, Domain
from tests.offers import RATES, an_offer
from tests.tiny import save_tiny
from tests.waiting import PATIENCE, until

JOBS, SWEEPS = "/v1/fine_tuning/jobs", "/v1/fine_tuning/sweeps"
ROWS = [{"problem": f"{n} + {n}?", "solution": f"The answer is {2 * n}.", "answer": str(2 * n)} for n in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
SHORT = {"sft": {}, "sample": {"n": 2, "max_response_tokens": 16}, "evaluate": {"max_response_tokens": 16}}
REAL = replace(ALLO, model="real", stages=SHORT)
BODY = {
    "model": "real",
    "training_file": "file-train",
    "validation_file": "file-heldout",
    "method": {"type": "allo", "allo": {"stages": SHORT}},
}

UNMEASURED = an_offer(slots=1, host=16)
FAST = replace(UNMEASURED, rates=asdict(RATES))
SLOW = replace(FAST, rates=asdict(replace(RATES, layer_seconds=10 * RATES.layer_seconds, write_bytes=1e6)))
SMALL = an_offer(slots=1, host=0.1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def counts(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """One for all tests, as it keeps what it counted by content; with a store of its own, which holds the same."""
    folder = tmp_path_factory.mktemp("counts")
    store = open_store((folder / "store").as_uri())
    store.put_stream([LINES])
    for path in model_folder.iterdir():
        store.put(path)
    return Counts(Scratch(store, folder / "scratch"))


def furnish(domain: Domain, model_folder: Path) -> Domain:
    """A model that can be counted with, and files with lines in them."""
    verdict = {"packs": True, "reason": "", "shape": asdict(shape_of(model_folder))}
    register_model(domain.database, domain.store, "real", model_folder, probe=lambda _: verdict)
    lines = domain.store.put_stream([LINES])
    with domain.database.transaction() as session:
        session.execute(update(File).values(sha256=lines.sha256, bytes=lines.size, rows=len(ROWS)))
    return domain


@pytest.fixture
def house(domain: Domain, model_folder: Path) -> Domain:
    return furnish(domain, model_folder)


@pytest.fixture
def client(app: FastAPI, secret: str, served: Domain, model_folder: Path, counts: Counts) -> Iterator[TestClient]:
    furnish(served, model_folder)
    app.state.context = replace(app.state.context, counts=counts)
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False) as client:
        yield client


def planned(domain: Domain, new: NewJob = REAL, **offers: Offer) -> Plan:
    return foresee(domain.database, domain.store, new, domain.sender(), offers)


def estimated(domain: Domain, counts: Counts, new: NewJob = REAL, **offers: Offer) -> dict[str, StageForesight]:
    plan = planned(domain, new, **offers)
    asked = plan.question()
    return {stage.name: stage for stage in told(plan, {} if asked is None else counts.ask(asked).result())}


def taking(stage: StageForesight) -> Taking:
    assert stage.taking is not None
    return stage.taking


def seconds(stage: StageForesight) -> float:
    band = taking(stage).seconds
    assert band is not None
    assert 0 < band.low < band.expected < band.high
    return band.expected


def contents(database: Database) -> dict[str, list[str]]:
    with database.snapshot() as session:
        return {
            table.name: sorted(map(str, session.execute(select(table)).all()))
            for table in Base.metadata.sorted_tables
            if table.name != "audit"
        }


# --- what is told, on both databases


def test_a_job_is_estimated_for_the_best_worker_of_each_stage_and_nothing_is_written(
    house: Domain, counts: Counts
) -> None:
    before = contents(house.database)
    found = estimated(house, counts, fast=FAST)
    assert contents(house.database) == before
    assert list(found) == [stage.name for stage in house.submit(REAL).stages]
    slow = estimated(house, counts, slow=SLOW)
    for name, stage in found.items():
        assert stage.workers == ("fast",)
        assert seconds(stage) <= seconds(slow[name])
        assert taking(stage).peak_memory_bytes
        assert taking(stage).tokens == taking(slow[name]).tokens
    assert seconds(found["sft"]) < seconds(slow["sft"])
    assert taking(found["sft"]).disk_bytes > 0
    whole = total(list(found.values()))
    assert whole is not None
    assert whole.seconds is not None
    assert whole.seconds.expected == pytest.approx(sum(map(seconds, found.values())))
    assert whole.tokens == sum(taking(stage).tokens for stage in found.values())


def test_who_is_known_to_be_how_fast_comes_first_and_what_no_worker_has_is_told(house: Domain, counts: Counts) -> None:
    found = estimated(house, counts, unmeasured=UNMEASURED, measured=FAST, small=SMALL)
    assert found["sft"].workers == ("measured", "unmeasured")
    lacking = estimated(house, counts, small=SMALL)["sft"]
    assert "memory; the largest worker here has 0.1" in lacking.missing
    assert (lacking.workers, taking(lacking).seconds) == ((), None)
    assert taking(lacking).tokens == taking(found["sft"]).tokens


def test_without_a_measured_worker_everything_is_told_but_the_time_and_why(house: Domain, counts: Counts) -> None:
    known = planned(house, unmeasured=UNMEASURED)
    asked = known.question()
    assert asked is not None
    stages = told(known, counts.ask(asked).result())
    for stage in stages:
        assert (taking(stage).seconds, stage.missing) == (None, "")
        assert taking(stage).peak_memory_bytes
    assert "no worker that could run it has measured how fast it is" in notes(known, stages)[0]
    alone = estimated(house, counts)["sft"]
    assert alone.missing.startswith("No worker is there yet")
    assert taking(alone).tokens == taking(stages[0]).tokens


def test_what_a_submit_warns_of_an_estimate_notes(domain: Domain) -> None:
    for stages, warned in (({"sft": {"share": 1}}, True), ({"sft": {}}, False)):
        plan = planned(domain, replace(ALLO, stages=stages), fast=FAST)
        assert any("sampled after it" in note for note in notes(plan, told(plan, {}))) == warned


def test_tasks_of_the_harness_are_told_not_to_be_counted(domain: Domain) -> None:
    for harness, noted in (({"tasks": ["arc_easy"]}, True), (None, False)):
        plan = planned(domain, replace(ALLO, stages={"evaluate": {"harness": harness}}), fast=FAST)
        assert any("lm-evaluation-harness" in note for note in notes(plan, told(plan, {}))) == noted


def test_an_estimate_says_what_more_rates_take_until_one_is_chosen(house: Domain, counts: Counts) -> None:
    new = replace(REAL, stages={"sft": {}, "improve": {"beta": 0.2}}, hyperparameters={})
    plan = planned(house, new, fast=FAST)
    asked = plan.question()
    assert asked is not None
    stages = told(plan, counts.ask(asked).result())
    (note,) = rates_to_try(plan, stages)
    seconds = sum(taking(stage).seconds.expected for stage in stages if stage.name in ("improve", "evaluate"))  # type: ignore[union-attr]
    assert "improve.learning_rate=5e-06,1.5e-05,5e-05 tries three" in note
    assert note.endswith(f"Each takes some {round(seconds)} seconds.")
    dpo = planned(house, replace(new, method="dpo", stages={}), fast=FAST)
    (of_dpo,) = rates_to_try(dpo, told(dpo, {}))
    assert "warmup.learning_rate=1e-06,3e-06,1e-05" in of_dpo
    assert "try warmup.beta=0.1,3 with each" in of_dpo
    assert rates_to_try(planned(house, replace(new, method="supervised", stages={})), []) == []
    for chosen in ({"stages": {"improve": {"learning_rate": 1e-5}}}, {"hyperparameters": {"learning_rate": 1e-5}}):
        assert rates_to_try(planned(house, replace(new, **chosen)), []) == []


def test_what_was_computed_is_reused_and_takes_nothing(house: Domain, counts: Counts) -> None:
    first = house.submit(REAL)
    house.run_all()
    found = estimated(house, counts, fast=FAST)
    assert {stage.reused_from for stage in found.values()} == {stage.id for stage in first.stages}
    assert {taking(stage).seconds.expected for stage in found.values()} == {0}  # type: ignore[union-attr]
    changed = planned(house, replace(REAL, stages={**SHORT, "improve": {"beta": 0.2}}), fast=FAST)
    assert found.keys() - changed.reused.keys() == {"improve", "evaluate"}
    assert changed.question() is not None


def test_a_sweep_pays_once_for_what_its_points_share_and_is_counted_once(house: Domain, counts: Counts) -> None:
    swept = {"improve.learning_rate": [1e-6, 1e-5, 1e-4]}
    before = contents(house.database)
    points = sweeps.foresee(house.database, house.store, REAL, swept, house.sender(), {"fast": FAST})
    assert contents(house.database) == before
    (question,) = {plan.question() for _, plan in points}
    assert question is not None
    works = counts.ask(question).result()
    first, *others = (told(plan, works) for _, plan in points)
    assert all(stage.reused_from is None for stage in first)
    for stages in others:
        assert [stage.name for stage in stages if stage.reused_from is None] == ["improve", "evaluate"]
    tokens = {stage.name: taking(stage).tokens for stage in first}
    whole = total([stage for stages in (first, *others) for stage in stages])
    assert whole is not None
    assert whole.tokens == sum(tokens.values()) + 2 * (tokens["improve"] + tokens["evaluate"])


def test_a_model_of_unknown_sizes_has_a_plan_without_figures(domain: Domain, counts: Counts) -> None:
    plan = planned(domain, ALLO, fast=FAST)
    stages = told(plan, {})
    assert plan.question() is None
    assert {stage.taking for stage in stages} == {None}
    assert total(stages) is None
    assert notes(plan, stages)[0].startswith("The sizes of the model are not known")


def test_what_is_expected_is_kept_behind_the_submit_and_measured_when_stages_have_ended(
    house: Domain, counts: Counts
) -> None:
    offers = {WORKER: FAST}
    behind = Expectations(house.database, house.store, counts, lambda: offers, "")
    assert planned(house, fast=FAST).past.seconds_ratio is None
    job_id = house.submit(REAL, house.sender(max_active_jobs=1)).job.id
    behind.later(OWNER, job_id)
    until(lambda: house.view(job_id).job.estimate is not None)
    behind.close()
    expected = house.view(job_id).job.estimate or {}
    found = estimated(house, counts, fast=FAST)
    assert expected == {name: taking(stage).write() for name, stage in found.items()}
    for factor, name in ((2, "sft"), (4, "sample")):
        claimed = house.claim()
        assert claimed.name == name
        took = factor * expected[name]["seconds"]["expected"]
        house.finish(claimed, {"seconds": took, "peak_memory_bytes": expected[name]["peak_memory_bytes"]})
    house.finish(house.claim(), {"seconds": 1e6, "resumed": True})
    past = planned(house, fast=FAST).past
    assert (past.jobs, past.stages) == (1, 2)
    assert past.seconds_ratio == spread([2, 4])
    assert past.memory_ratio == spread([1, 1])
    house.add_file("file-theirs", owner="stranger")
    theirs = replace(REAL, training_file="file-theirs", validation_file=None, stages={"sft": {}})
    stranger = foresee(house.database, house.store, theirs, house.sender(owner="stranger"), offers)
    assert stranger.past.stages == 0


def counted(planned: Sequence[PlannedStage]) -> list[Any]:
    """What counts of each stage."""
    return [(stage.name, stage.config.model_dump(exclude=set(LEARNING_ONLY)), stage.inputs) for stage in planned]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "supervised", "stages": {}, "seed": 3},
        {"stages": {"forget": None, "improve": {"beta": 0.2}}},
        {"retention_file": "file-heldout", "hyperparameters": {"learning_rate_multiplier": 2, "train": "mask"}},
    ],
)
def test_a_jobs_row_asks_for_the_very_count_that_its_request_did(
    served: Domain, model_folder: Path, change: dict[str, Any]
) -> None:
    new = replace(REAL, **change)
    wanted = planned(furnish(served, model_folder), new)
    asked = wanted.question()
    assert asked is not None
    data = Data("problems", validation="problems", retention="problems" if new.retention_file else None)
    again = plan_of(new.method, data, json.loads(asked.job)["stages"])
    assert counted(again) == counted(wanted.admitted.planned)
    assert planned(served, asked_again(served.submit(new).job)).question() == asked


def test_what_an_owner_may_hold_bounds_an_estimate_as_it_does_a_submit(house: Domain) -> None:
    full = house.sender(max_owner_bytes=1)
    with pytest.raises(QuotaExceeded) as of_submit:
        house.submit(REAL, full)
    with pytest.raises(QuotaExceeded) as of_estimate:
        foresee(house.database, house.store, REAL, full, {})
    assert of_submit.value.message == of_estimate.value.message


def test_a_spread_leaves_a_tenth_aside_on_either_side() -> None:
    assert spread([]) is None
    assert spread([3.0]) == Spread(3, 3, 3)
    assert spread([2.0, 1.0]) == Spread(1.5, 1, 2)
    assert spread(range(1, 12)) == Spread(6, 2, 10)


# --- a child that gives no answer


@pytest.mark.parametrize(
    ("code", "seconds", "kind", "words"),
    [
        ("import time; time.sleep(1000)", 1, Unavailable, "more than 1 seconds"),
        ("import os; os.kill(os.getpid(), 9)", PATIENCE, Unavailable, "was killed"),
        ("raise MemoryError('no more')", PATIENCE, Unavailable, "MemoryError: no more"),
        ("import sys; print('All too long.', file=sys.stderr); sys.exit(3)", PATIENCE, InvalidRequest, "too long"),
    ],
)
def test_a_count_that_hangs_or_dies_is_told_and_tried_again_when_it_is_asked_for_again(
    served: Domain, model_folder: Path, tmp_path: Path, code: str, seconds: float, kind: type[DomainError], words: str
) -> None:
    house = furnish(served, model_folder)
    broken = Counts(Scratch(house.store, tmp_path / "scratch"), (sys.executable, "-c", code), seconds)
    asked = planned(house, fast=FAST).question()
    assert asked is not None
    for _ in range(2):
        with pytest.raises(kind, match=words):
            broken.ask(asked).result()
    assert list((tmp_path / "scratch").iterdir()) == []


# --- over HTTP


def test_an_estimate_over_http_is_as_the_document_says_and_a_dry_run_is_the_same(
    client: TestClient, served: Domain, counts: Counts
) -> None:
    workers.beat(served.database, WORKER, "host", FAST)
    until(lambda: contents(served.database)["markers"])  # which the service writes when it likes
    before = contents(served.database)
    found = client.post(f"{JOBS}/estimate", json=BODY)
    assert found.status_code == 200, found.text
    answer = found.json()
    TypeAdapter(Estimate).validate_python(answer, strict=True)
    assert client.post(f"{JOBS}?dry_run=true", json=BODY).json() == answer
    assert contents(served.database) == before
    assert client.get(JOBS).json()["data"] == []
    assert answer["stages"][0]["name"] == "sft"
    assert answer["seconds"]["expected"] == pytest.approx(
        sum(stage["seconds"]["expected"] for stage in answer["stages"]), abs=1
    )
    assert answer["past"] == {"jobs": 0, "stages": 0, "seconds_ratio": None, "memory_ratio": None}
    able = {"kind": "8 cores, 16 GiB", "count": 1, "calibrated": True}
    assert answer["stages"][0]["workers"] == [{**able, "names": [WORKER]}]
    reader = {"authorization": f"Bearer {create_key(served.database, 'owner', ('read',)).secret}"}
    theirs = client.post(f"{JOBS}/estimate", json=BODY, headers=reader).json()
    assert theirs["stages"][0]["workers"] == [{**able, "names": None}]
    assert client.post(f"{JOBS}?dry_run=true", json=BODY, headers=reader).status_code == 403
    assert client.post(f"{JOBS}?dry_run=false", json=BODY).json()["object"] == "fine_tuning.job"


def test_the_whole_price_of_a_sweep_is_told_and_what_its_submit_refuses_is_refused(
    client: TestClient, served: Domain
) -> None:
    workers.beat(served.database, WORKER, "host", FAST)
    body = {**BODY, "sweep": {"improve.beta": [0.1, 0.2], "seed": [0]}}
    found = client.post(f"{SWEEPS}/estimate", json=body)
    assert found.status_code == 200, found.text
    answer = found.json()
    TypeAdapter(SweepEstimate).validate_python(answer, strict=True)
    first, second = answer["points"]
    assert second["computes"] == ["improve", "evaluate"]
    assert second["point"] == {"improve.beta": 0.2, "seed": 0}
    assert answer["tokens"] == first["tokens"] + second["tokens"]
    assert client.get(JOBS).json()["data"] == []
    for change in ({"sweep": {"seed": [0, -1]}}, {"sweep": {"improve.rate": [1]}}, {"sweep": {"seed": list(range(6))}}):
        refused = [client.post(path, json=body | change) for path in (SWEEPS, f"{SWEEPS}/estimate")]
        assert refused[0].status_code == 422
        assert refused[0].json() == refused[1].json()


def test_what_was_expected_of_a_job_stands_in_its_answer(client: TestClient, served: Domain) -> None:
    job = client.post(JOBS, json=BODY).json()
    assert {stage["estimate"] for stage in job["stages"]} == {None}
    assert job["eta_seconds"] is None
    band = {"low": 1.0, "expected": 2.0, "high": 3.0}
    expected = {"tokens": 5, "seconds": band, "peak_memory_bytes": 6, "disk_bytes": 7}
    with served.database.transaction() as session:
        table = Base.metadata.tables["jobs"]
        session.execute(table.update().values(estimate={stage["name"]: expected for stage in job["stages"]}))
    job = client.get(f"{JOBS}/{job['id']}").json()
    assert all(stage["estimate"] == expected for stage in job["stages"])
    assert job["eta_seconds"] == 2 * len(job["stages"])


BAD: list[dict[str, Any]] = [
    {"model": "nobody"},
    {"model": "https://example.com/model"},
    {"training_file": "file-none"},
    {"training_file": "file-theirs"},
    {"training_file": "file-bad"},
    {"validation_file": "file-chats"},
    {"corrections_file": "file-train"},
    {"masks": "ftjob-none"},
    {"seed": -1},
    {"suffix": "no spaces"},
    {"colour": "red"},
    {"hyperparameters": {"zeta": 1}},
    {"method": {"type": "ppo"}},
    {"method": {"type": "allo", "allo": {"stages": {"dream": {}}}}},
    {"method": {"type": "allo", "allo": {"stages": {"locate": {"ratio": 0.5}}}}},
    {"method": {"type": "allo", "allo": {"stages": {"locate": {"forget_ratio": 0}}}}},
    {"method": {"type": "allo", "allo": {"stages": {"reward_model": {"model": "nobody"}}}}},
    {
        "method": {
            "type": "allo",
            "allo": {"stages": {"reward_model": {"corrections": {"base_url": "http://x.test/v1", "model": "m"}}}},
        }
    },
]


def test_what_a_submit_refuses_an_estimate_refuses_with_the_very_same_error(client: TestClient, served: Domain) -> None:
    served.add_file("file-theirs", owner="stranger")
    served.add_file("file-chats", "chats")
    served.add_file("file-bad", status="error", status_details="1 problem: line 1.")

    def answers(body: Any) -> list[tuple[int, Any]]:
        paths = (JOBS, f"{JOBS}/estimate", f"{JOBS}?dry_run=true")
        return [
            (found.status_code, found.json()["error"]) for found in (client.post(path, json=body) for path in paths)
        ]

    for change in BAD:
        submitted, *others = answers(BODY | change)
        assert submitted[0] in (404, 422), change
        assert others == [submitted] * 2, change
    for _ in range(5):
        assert client.post(JOBS, json=BODY).status_code == 200
    submitted, *others = answers(BODY)
    assert submitted[0] == 429
    assert others == [submitted] * 2


def test_a_count_that_fails_is_an_error_that_names_it(app: FastAPI, client: TestClient, tmp_path: Path) -> None:
    context = app.state.context
    dead = Counts(Scratch(context.store, tmp_path / "scratch"), (sys.executable, "-c", "raise ValueError('odd')"))
    app.state.context = replace(context, counts=dead)
    found = client.post(f"{JOBS}/estimate", json=BODY)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "unavailable")
    assert "that counts what the job computes gave no answer: ValueError: odd" in found.json()["error"]["message"]
