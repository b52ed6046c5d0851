"""A job is made with a form, and what is wrong with it stands where it is wrong."""

from __future__ import annotations

import html
import json
import re
import shlex
from typing import Any

import httpx
import yaml
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from allo_engine.config import CONFIGS
from allo_engine.pipeline import METHODS, Method
from service.api.examples import ESTIMATE
from service.api.schemas import CreateJob
from service.jobs import service
from service.jobs.repository import Page
from service.pages.asking import Asked, like
from service.pages.fields import kinds_of, settings_of, stages_of
from service.pages.rendering import render
from service.pages.samples import samples
from tests.integration.pages.conftest import SignIn, send
from tests.integration.pages.test_holdings_pages import with_settings
from tests.integration.service.domain import OWNER, Domain

PLAIN = {"model": "tiny", "training_file": "file-train", "method": "supervised"}
XSS = '"><img src=x onerror=alert(1)>'


def jobs_of(served: Domain, owner: str = OWNER) -> list[Any]:
    return service.read_page(served.database, owner, Page(100))[0]


def field_with(page: str, name: str) -> str:
    """The message at a field, whose field says that it is wrong."""
    (message,) = re.findall(rf'id="wrong-{re.escape(name)}"[^>]*>([^<]*)<', page)
    assert re.search(rf'id="{re.escape(name)}"[^>]*aria-invalid="true" aria-describedby="wrong-', page)
    return html.unescape(message)


def test_every_setting_of_every_stage_is_a_field_that_stands_as_published(browser: TestClient) -> None:
    assert kinds_of("allo") == tuple(CONFIGS)
    for method in METHODS:
        check_fields(browser, method)


def check_fields(browser: TestClient, method: Method) -> None:
    answer = browser.get("/ui/new", params={"method": method})
    assert (answer.status_code, len(answer.content) < 200_000) == (200, True), len(answer.content)
    for name in kinds_of(method):
        empty = CONFIGS[name]().model_dump(mode="json")
        for field, value in empty.items():
            setting = settings_of(method)[f"stages.{name}.{field}"]
            assert f'name="{setting.name}"' in answer.text
            assert setting.value(setting.default) == value
            assert setting.value(setting.text(value)) == value
            assert setting.help or setting.bounds or setting.kind in ("choice", "number"), field
    ids = re.findall(r' id="([^"]+)"', answer.text)
    assert len(ids) == len(set(ids))
    named = {word for words in re.findall(r'aria-describedby="([^"]+)"', answer.text) for word in words.split()}
    assert named <= set(ids), "what a field refers to is there"


def test_a_job_is_submitted_with_what_was_put_in_alone(browser: TestClient, served: Domain) -> None:
    form = PLAIN | {
        "method": "allo", "validation_file": "file-heldout", "suffix": "mine", "seed": "3", "sending": "one",
        "metadata": "team = a\nx=1=2",
        "stages.improve.beta": "0.2", "stages.improve.filter": '"both"', "stages.pair.pass_rate": "[0.1, 0.9]",
        "stages.evaluate.option_prefix": "So:", "hyperparameters.batch_size": "16", "without.forget": "on",
        "ask.sft": "on", "stages.sft.gradient_checkpointing": "true",
    }  # fmt: skip
    made = send(browser, "/ui/new", **form)
    (view,) = jobs_of(served)
    assert made.headers["location"] == f"/ui/jobs/{view.job.id}"
    stages = view.job.method["stages"]
    assert (stages["improve"]["beta"], stages["improve"]["filter"], stages["improve"]["batch_size"]) == (
        0.2,
        "both",
        16,
    )
    assert (stages["pair"]["pass_rate"], stages["evaluate"]["option_prefix"]) == ([0.1, 0.9], "So:")
    assert (stages["forget"], stages["sft"]["gradient_checkpointing"], view.job.seed) == (None, True, 3)
    assert view.job.user_metadata == {"team": "a", "x": "1=2"}
    assert send(browser, "/ui/new", **form).headers["location"] == made.headers["location"]
    assert len(jobs_of(served)) == 1, "a form that is sent twice is one job"
    again = browser.get("/ui/new", params={"like": view.job.id}).text
    for name in ("stages.improve.beta", "stages.pair.pass_rate"):
        assert re.search(rf'name="{name}" value="[^"]', again)
    assert re.search(r'name="stages.improve.learning_rate" value=""', again), "what stands as published is not put in"
    assert re.search(r'name="without.forget" checked', again)


WRONG: tuple[tuple[dict[str, str], str, str], ...] = (
    ({"model": "absent"}, "model", "does not exist"),
    ({"training_file": "file-absent"}, "training_file", "No file"),
    ({"seed": "x"}, "seed", "valid integer"),
    ({"suffix": "a b"}, "suffix", "takes letters"),
    ({"metadata": f"k={'x' * 600}"}, "metadata", "at most 512"),
    ({"stages.sft.learning_rate": "-1"}, "stages.sft.learning_rate", "0"),
    ({"stages.sft.learning_rate": "fast"}, "stages.sft.learning_rate", "number"),
    ({"stages.sft.batch_size": "1.5"}, "stages.sft.batch_size", "integer"),
    ({"method": "allo", "stages.pair.pass_rate": "[0.9, 0.1]"}, "stages.pair.pass_rate", "low"),
    ({"method": "allo", "stages.evaluate.judge": "{}"}, "stages.evaluate.judge", ""),
    ({"masks": "ftjob-absent"}, "masks", ""),
)


def test_an_error_stands_at_its_field_and_what_was_typed_stays(browser: TestClient, served: Domain) -> None:
    for fields, at, words in WRONG:
        extra = {"validation_file": "file-heldout"} if "evaluate" in at else {}
        answer = send(browser, "/ui/new", **{**PLAIN, **extra, **fields})
        assert answer.status_code in (404, 422), at
        assert words in field_with(answer.text, at)
        assert f'href="#{at}"' in answer.text, "the summary leads there"
        typed = html.escape(fields[at]).replace("&#x27;", "&#39;")
        assert typed in answer.text.replace("&#34;", "&quot;"), at
    assert jobs_of(served) == []


def test_what_is_typed_is_text(browser: TestClient) -> None:
    typed = {"model": XSS, "training_file": XSS, "suffix": XSS, "stages.sft.template": XSS, "metadata": XSS}
    for path in ("/ui/new", "/ui/new/stages", "/ui/new/estimate"):
        assert "<img" not in send(browser, path, **{**PLAIN, **typed}).text
    assert "<img" not in browser.get("/ui/new", params=dict.fromkeys(("model", "training_file", "method"), XSS)).text


def test_scopes_and_tokens_hold_and_others_files_are_not_offered(
    browser: TestClient, sign_in: SignIn, served: Domain
) -> None:
    assert sign_in(OWNER, "read").get("/ui/new").status_code == 403
    assert browser.post("/ui/new", data=PLAIN).status_code == 403
    assert "file-train" in browser.get("/ui/new").text
    stranger = sign_in("stranger", "submit")
    assert "file-train" not in stranger.get("/ui/new").text
    assert "No file" in send(stranger, "/ui/new", **PLAIN).text
    job = served.submit(CreateJob(**{**PLAIN, "method": None}).asked()).job.id
    theirs = stranger.get("/ui/new", params={"like": job})
    assert (theirs.status_code, job) == (404, job)


def test_trackers_are_offered_where_the_operator_allows_them(app: FastAPI, browser: TestClient, served: Domain) -> None:
    assert "mlflow.experiment" not in browser.get("/ui/new").text
    with_settings(app, trackers="mlflow,wandb")
    assert "mlflow.experiment" in browser.get("/ui/new").text
    wrong = send(browser, "/ui/new", **PLAIN, **{"mlflow.experiment": "../x"})
    assert "pattern" in field_with(wrong.text, "mlflow.experiment")
    send(browser, "/ui/new", **PLAIN, **{"mlflow.experiment": "mine"})
    (view,) = jobs_of(served)
    assert view.job.integrations == [{"type": "mlflow", "mlflow": {"experiment": "mine"}}]


def estimate_of(browser: TestClient, **fields: str) -> str:
    answer = send(browser, "/ui/new/estimate", **fields)
    assert answer.status_code == 200
    return answer.text


def test_the_estimate_says_what_is_wrong_and_gives_the_request_all_the_same(browser: TestClient) -> None:
    part = estimate_of(browser, **PLAIN, **{"stages.sft.batch_size": "0"})
    assert 'href="#stages.sft.batch_size"' in part
    assert "fine_tuning.jobs.create" in part
    assert "<html" not in part


def test_with_the_estimate_comes_what_fields_of_this_very_job_stand_at(browser: TestClient) -> None:
    fields = {**PLAIN, "method": "allo", "ask.sft": "on", "stages.locate.importance": '"random"', "seed": "x"}
    (told,) = re.findall("data-defaults='([^']*)'", estimate_of(browser, **fields))
    assert json.loads(html.unescape(told)) == {
        "stages.sft.share": "0.5",
        "stages.sample.skip_share": "0.5",
        "stages.improve.nll": "1.0",
        "stages.improve.learning_rate": "5e-05",
    }
    assert "data-defaults='{}'" in estimate_of(browser, **{**fields, "training_file": "file-absent"})


def test_stages_follow_the_method_and_keep_what_was_typed(browser: TestClient) -> None:
    part = send(browser, "/ui/new/stages", **{**PLAIN, "method": "dpo", "stages.sft.n_epochs": "7"}).text
    assert 'name="stages.sft.n_epochs" value="7"' in part
    assert "stages.warmup.beta" in part
    assert "stages.improve.beta" not in part
    assert "1 changed" in part


BODY = Asked(
    PLAIN
    | {"method": "allo", "suffix": "it's", "masks": "ftjob-1", "stages.improve.beta": "0.2"}
    | {"stages.improve.template": "Q: {problem}\n\"A\" 'B' $HOME `x` \\ é"}
).body()


def test_the_samples_are_the_very_request() -> None:
    written = samples(BODY, "http://127.0.0.1:8000")
    assert yaml.safe_load(written["YAML"]) == BODY
    words = shlex.split(written["curl"].replace("\\\n", " "))
    assert json.loads(words[words.index("-d") + 1]) == BODY
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"id": "ftjob-1"})

    import openai

    real = openai.OpenAI
    client = httpx.Client(transport=httpx.MockTransport(answer))
    code = written["Python"].replace("import os", "").replace("from openai import OpenAI", "")
    exec(code, {"OpenAI": lambda **given: real(**given, http_client=client), "os": _Os})  # noqa: S102 - our own sample
    client.close()
    assert sent == [BODY]


class _Os:
    environ = {"ALLO_API_KEY": "allo-x"}  # noqa: RUF012


def test_a_form_like_a_job_asks_for_that_job() -> None:
    stages = {
        name: config().model_dump(mode="json") | ({"beta": 0.3} if name == "improve" else {})
        for name, config in CONFIGS.items()
        if name not in ("sft", "warmup")
    }
    job = {"model": "m", "training_file": "f", "seed": 4, "method": {"type": "allo", "allo": {"stages": stages}}}
    body = Asked(like(job)).body()
    assert body == {
        "model": "m",
        "training_file": "f",
        "seed": 4,
        "method": {"type": "allo", "allo": {"stages": {"improve": {"beta": 0.3}}}},
    }


def test_the_first_settings_of_a_stage_are_its_own() -> None:
    improve = next(stage for stage in stages_of("allo") if stage.name == "improve")
    assert {one.label for one in improve.first} >= {"filter", "filter ratio", "learning rate", "beta"}
    assert "precision" in {one.label for one in improve.more}


def test_an_estimate_tells_time_memory_and_who_could_run_each_stage() -> None:
    request = Request({"type": "http", "path": "/ui/new", "query_string": b"", "headers": []})
    lacking = {**ESTIMATE["stages"][0], "missing": "No worker has vllm.", "seconds": None, "reused": True}
    found = {**ESTIMATE, "stages": [*ESTIMATE["stages"], lacking]}
    values: dict[str, Any] = {"wrong": {}, "counting": False, "samples": {}, "defaults": {}}
    part = render(request, "new_estimate.html", estimate=found, **values)
    for words in ("4 min 22 s", "3 min 10 s to 5 min 42 s", "3.2 GB", "1 × 8 cores, 62 GiB", "No worker has vllm."):
        assert words in part
    part = render(request, "new_estimate.html", **{**values, "estimate": None, "counting": True})
    assert 'hx-trigger="load delay:1s"' in part, "it asks again"
