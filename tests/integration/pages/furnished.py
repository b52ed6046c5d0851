"""An owner whose things are all called by markup, and the pages that show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote, urlencode

from fastapi import FastAPI
from starlette.routing import Mount

from service.jobs.running import attempts
from service.jobs.tables import Model
from tests.integration.pages.test_jobs import many
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.integration.service.routes import Route, every_route
from tests.integration.service.taught import RESPONSE, evaluated, taught

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
NAMED = f"evil {EVIL}"

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


def furnished(served: Domain, count: int) -> tuple[dict[str, str], str]:
    """So many of everything; parameters of routes that lead to them, and a job that runs, beside the finished one of
    these."""
    with served.database.transaction() as session:
        files = session.get_one(Model, "tiny").files
        for name in (NAMED, *(f"{number} {EVIL}" for number in range(count))):
            session.add(Model(id=name, owner=OWNER, created_at=0, files=files))
    for number in range(count):
        served.add_file(f"file-{number:024}", filename=EVIL * 4)
    findings = {
        "token_rewards": {"scores": {"examples.jsonl": json.dumps({**RESPONSE, "problem": EVIL})}},
        "evaluate": evaluated({"base": "00", "improve": "11"}, EVIL),
    }
    job = taught(served, findings, model=NAMED, training_file=f"file-{0:024}", metadata={EVIL: EVIL}, suffix="named")
    served.submit(replace(SUPERVISED, seed=9))
    claimed = served.claim()
    assert attempts.record_message(served.database, claimed.stage_id, claimed.epoch, "warn", EVIL, {"note": EVIL})
    many(served, count)
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


def pages(app: FastAPI, here: dict[str, str], running: str) -> Iterator[tuple[Route, str]]:
    """Every page, and every part of one that can be asked for, with its address."""
    (inner,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(inner, FastAPI)
    for route in every_route(inner):
        if route.method != "GET" or any(part in route.path for part in NO_PAGES):
            continue
        of_any_job = "{job_id}" in route.path and "/learned/" not in route.path
        for job in (here["job_id"], running) if of_any_job else (here["job_id"],):
            query = urlencode(asked(route.path, job, running), doseq=True)
            yield route, f"/ui{quote(route.at(**{**here, 'job_id': job}))}?{query}"
