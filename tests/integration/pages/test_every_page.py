"""What every page keeps to, whatever people call their things and however many they have: texts are texts, and a page
is small."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import urlencode

from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Mount

from service.jobs.running import attempts
from service.jobs.tables import Model
from tests.integration.pages.conftest import form_token
from tests.integration.pages.test_job import EVIL, Tags
from tests.integration.pages.test_jobs import many
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.integration.service.routes import every_route
from tests.integration.service.taught import RESPONSE, evaluated, taught

MANY = 120
NAMED = f"evil {EVIL}"
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
NO_PAGES = (
    "/login",
    "/static",
    "/stream",
    "/curves",
    "/metrics",
    "/artifacts",
    "/export",
    "/made",
    "/models/{name}/files",
)


def furnished(served: Domain) -> tuple[dict[str, str], str]:
    """An owner who has many things, with names that are markup; parameters of routes that lead to them, and a job that
    runs, beside the finished one of these."""
    with served.database.transaction() as session:
        files = session.get_one(Model, "tiny").files
        for name in (NAMED, *(f"{number} {EVIL}" for number in range(MANY))):
            session.add(Model(id=name, owner=OWNER, created_at=0, files=files))
    for number in range(MANY):
        served.add_file(f"file-{number:024}", filename=EVIL * 4)
    findings = {
        "token_rewards": {"scores": {"examples.jsonl": json.dumps({**RESPONSE, "problem": EVIL})}},
        "evaluate": evaluated({"base": "00", "improve": "11"}, EVIL),
    }
    job = taught(served, findings, model=NAMED, training_file=f"file-{0:024}", metadata={EVIL: EVIL}, suffix="named")
    served.submit(replace(SUPERVISED, seed=9))
    claimed = served.claim()
    assert attempts.record_message(served.database, claimed.stage_id, claimed.epoch, "warn", EVIL, {"note": EVIL})
    many(served, MANY)
    return {"job_id": job, "file_id": f"file-{1:024}", "name": NAMED}, claimed.job_id


def asked(path: str, job: str, other: str) -> dict[str, str | list[str]]:
    """What a page is asked for beyond its path, where it has something to show for it."""
    match path.rpartition("/")[2]:
        case "compare":
            return {"job": [job, other]}
        case "paired":
            return {"ours": f"{job}:improve", "theirs": f"{job}:base"}
        case "new":
            return {"like": job}
        case "try":
            return {"model": [NAMED, EVIL]}
        case "events":
            return {"before": "1000"}
        case "insight":
            return {"model": NAMED, "validation_file": f"file-{2:024}"}
    return {}


def test_every_page_is_small_and_has_every_name_as_text(app: FastAPI, browser: TestClient, served: Domain) -> None:
    here, running = furnished(served)
    (inner,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(inner, FastAPI)
    routes = [route for route in every_route(inner) if route.method == "GET"]
    pages = [route for route in routes if not any(part in route.path for part in NO_PAGES)]
    assert len(pages) > 20
    for route in pages:
        headers = {"hx-request": "true"} if route.path.endswith("/live") else {}
        of_any_job = "{job_id}" in route.path and "/learned/" not in route.path
        for job in (here["job_id"], running) if of_any_job else (here["job_id"],):
            path = f"/ui{route.at(**{**here, 'job_id': job})}"
            answer = browser.get(path, params=asked(route.path, job, running), headers=headers)
            assert answer.status_code == 200, (route, answer.text)
            assert len(answer.content) < 200_000, (route, len(answer.content))
            tags = Tags(answer.text)
            assert "onerror" not in tags.attributes, route
            assert "<script>alert" not in answer.text, route


def test_what_is_not_among_the_newest_is_named(browser: TestClient, served: Domain) -> None:
    assert "Another file" not in browser.get("/ui/new").text
    for number in range(MANY):
        served.add_file(f"file-x{number:023}")
    page = browser.get("/ui/new").text
    assert "file-train" not in page
    assert "Training file: Another file&#39;s id" in page
    token = form_token(page)
    chosen = ("training_file", f"file-x{9:023}")
    form = [("model", "tiny"), chosen, ("method", "supervised"), ("seed", "-1"), ("form_token", token)]
    answer = browser.post("/ui/new", content=urlencode([*form, ("training_file", "file-train")]), headers=URLENCODED)
    assert answer.status_code == 422
    assert "<option selected>file-train</option>" in answer.text, "what was put in goes before what was chosen"
