"""The OpenAPI document says of every route who may call it, what it takes, and everything that it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI

from allo_engine.config import CONFIGS
from service.api.refusals import CODES
from service.api.shapes import ANSWERS
from service.jobs.sweeping import sweeps
from service.settings import Settings
from tests import asking
from tests.integration.service.domain import SUPERVISED, Domain

ERROR = {"$ref": "#/components/schemas/Error"}
OPEN = {"/healthz", "/readyz"}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def test_every_route_has_a_tag_a_summary_an_id_and_a_model_of_its_answer(document: dict[str, Any]) -> None:
    tags, seen = {tag["name"] for tag in document["tags"]}, set()
    for path, verb, operation in operations(document):
        name = operation["operationId"]
        assert set(operation["tags"]) <= tags, name
        assert len(operation["tags"]) == 1, name
        assert re.fullmatch(r"[a-z_]+\.[a-z_]+", name), name
        assert len(operation["summary"].split()) > 1, (verb, path)
        contents = operation["responses"]["200"]["content"].values()
        assert all(content["schema"] for content in contents), name
        seen.add(name)
    assert len(seen) == len(list(operations(document)))


def test_the_answer_of_every_route_is_known_and_of_no_other(document: dict[str, Any]) -> None:
    closed = [one["operationId"] for path, _, one in operations(document) if path not in OPEN]
    assert sorted(ANSWERS) == sorted(closed)


def test_every_route_names_its_key_and_every_error_in_our_shape(document: dict[str, Any]) -> None:
    for path, verb, operation in operations(document):
        assert operation["security"] == ([] if path in OPEN else [{"key": []}]), path
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        if path not in OPEN:
            assert {"401", "403", "422", "429", "500", "503"} <= set(errors), (verb, path)
            refused = errors.pop("422")["content"]["application/json"]["schema"]["allOf"]
            assert refused[0] == ERROR, (verb, path)
            assert all(one["content"]["application/json"]["schema"] == ERROR for one in errors.values()), (verb, path)
        if "{" in path:
            assert "404" in errors, (verb, path)


def test_bounds_are_the_very_numbers_that_a_body_is_held_against(document: dict[str, Any]) -> None:
    size = document["components"]["schemas"]["CreateUpload"]["properties"]["bytes"]
    assert json.dumps([size["minimum"], size["exclusiveMaximum"]]) == f"[1, {2**63}]"


def test_every_code_of_a_refusal_stands_with_the_routes_that_answer_with_it(document: dict[str, Any]) -> None:
    told = set()
    for path, _, operation in operations(document):
        if path not in OPEN:
            schema = operation["responses"]["422"]["content"]["application/json"]["schema"]
            told |= set(schema["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"])
    assert told == set(CODES)


def test_every_reference_leads_somewhere_and_nothing_of_the_framework_is_left(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for wanted in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        found = document["components"]["schemas"]
        for name in wanted.split("/"):
            found = found[name]
    assert "HTTPValidationError" not in text


def test_the_settings_of_every_stage_are_described_by_the_engines_own_classes(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    stages = schemas["MethodSettings"]["properties"]["stages"]["anyOf"][0]["properties"]
    assert {"sft", "sample", "warmup", "locate", "improve", "evaluate"} <= set(stages)
    improve = schemas[stages["improve"]["anyOf"][0]["$ref"].rpartition("/")[2]]
    assert "learning_rate" in improve["properties"]


def test_answers_are_as_the_document_says(base_url: str, served: Domain, secret: str, document: dict[str, Any]) -> None:
    job = served.submit(SUPERVISED).job.id
    served.submit(SUPERVISED)
    swept = {"sft.learning_rate": [1e-6, 1e-5]}
    sweep = sweeps.submit(served.database, served.store, SUPERVISED, swept, served.sender(), []).id
    served.run_all()
    artifact = served.view(job).artifacts[0].id
    root = base_url.removesuffix("/v1")
    asked = [
        ("/v1/fine_tuning/jobs", ""),
        ("/v1/fine_tuning/jobs/{job_id}", job),
        ("/v1/fine_tuning/jobs/{job_id}", "ftjob-none"),
        ("/v1/fine_tuning/jobs/{job_id}/events", job),
        ("/v1/fine_tuning/jobs/{job_id}/checkpoints", job),
        ("/v1/fine_tuning/jobs/{job_id}/artifacts", job),
        ("/v1/fine_tuning/sweeps", ""),
        ("/v1/fine_tuning/sweeps/{sweep_id}", sweep),
        ("/v1/artifacts/{artifact_id}/content", artifact),
        ("/v1/files", ""),
        ("/v1/files/{file_id}", "file-train"),
        ("/v1/models", ""),
        ("/v1/models/{name}", "tiny"),
        ("/v1/models/{name}/files", "tiny"),
        ("/v1/workers", ""),
        ("/v1/keys", ""),
        ("/v1/webhook_endpoints", ""),
        ("/v1/webhook_event_types", ""),
        ("/readyz", ""),
        ("/metrics", ""),
    ]
    for path, name in asked:
        answer = asking.get(root + re.sub(r"{\w+}", name, path), headers={"authorization": f"Bearer {secret}"})
        documented = document["paths"][path]["get"]["responses"][str(answer.status_code)]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in documented, path
        if kind == "application/json":
            schema = documented[kind]["schema"] | {"components": document["components"]}
            jsonschema_rs.validator_for(schema).validate(answer.json())


def test_the_documentation_is_served_without_a_key_and_without_the_network(base_url: str, served: Domain) -> None:
    root = base_url.removesuffix("/v1")
    for path in ("/docs", "/docs/operations", "/docs/settings"):
        page = asking.get(root + path)
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r"(src|href)=.?https?:", page.text)
    assert "/v1/fine_tuning/jobs/{job_id}" in asking.get(f"{root}/docs").text
    settings = asking.get(f"{root}/docs/settings").text
    assert all(f"ALLO_{name.upper()}" in settings for name in Settings.model_fields)
    assert all(f'id="{stage}"' in settings for stage in CONFIGS)
    assert asking.get(f"{base_url}/openapi.json").json()["openapi"].startswith("3.1")
    assert asking.get(f"{root}/docs/..%2f..%2fsettings").status_code == 404
    assert asking.get(f"{root}/docs/nothing").json()["error"]["code"] == "not_found"


def test_the_example_of_an_estimate_is_one(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Estimate"]
    (example,) = schema["examples"]
    jsonschema_rs.validator_for(schema | {"components": document["components"]}).validate(example)
