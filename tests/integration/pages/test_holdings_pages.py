"""The pages of what there is: models, workers, keys, and what an owner takes."""

from __future__ import annotations

import html
import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs.access.keys import create_key, find_key, list_keys
from service.jobs.registry import models
from service.jobs.running import workers
from service.jobs.tables import Model
from service.pages import models as pages
from tests.integration.pages.conftest import SignIn, form_token, send
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.offers import an_offer

PAGES = ("/ui/models", "/ui/models/tiny", "/ui/workers", "/ui/keys", "/ui/usage", "/ui/usage/figures")
XSS = "<img src=x onerror=alert(1)>"


def with_settings(app: FastAPI, **values: Any) -> None:
    context = app.state.context
    changed = replace(context, settings=context.settings.model_copy(update=values))
    app.state.context = changed
    for route in app.routes:
        inner = getattr(route, "app", None)
        if hasattr(inner, "state"):
            inner.state.context = changed


def secret_of(page: str) -> str:
    (secret,) = re.findall(r'<code id="secret">(allo-[\w-]+)</code>', page)
    return secret


def test_every_page_is_small_and_has_what_its_owner_made(browser: TestClient, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    served.run_all()
    for path in PAGES:
        answer = browser.get(path)
        assert (answer.status_code, len(answer.content) < 200_000) == (200, True), path
    assert job in browser.get("/ui/models").text


def test_what_is_written_into_a_page_is_text(browser: TestClient, served: Domain) -> None:
    with served.database.transaction() as session:
        model = session.get(Model, "tiny")
        assert model is not None
        model.origin = {"license": XSS, "source": XSS}
        model.verdict = {"packs": False, "reason": XSS, "shape": {XSS: 1}}
        model.files = [{**model.files[0], "path": XSS}]
    workers.beat(served.database, XSS, XSS, an_offer(packages={XSS: XSS}))
    for path in PAGES:
        page = browser.get(path).text
        assert "<img" not in page
        assert "&lt;img" in page or path in ("/ui/keys", "/ui/usage", "/ui/usage/figures"), path


def test_scopes_hold_and_other_owners_see_nothing(sign_in: SignIn, served: Domain) -> None:
    served.submit(SUPERVISED)
    served.run_all()
    (made,) = [row.id for row in models.read_models(served.database, OWNER) if row.id.count(":") == 3]
    reader, stranger = sign_in(OWNER, "read"), sign_in("stranger", "read", "submit")
    for path in ("/ui/workers", "/ui/keys"):
        assert reader.get(path).status_code == 403
        assert path not in reader.get("/ui/models").text
    assert send(reader, "/ui/keys", owner="x", scopes="admin").status_code == 403
    assert send(reader, f"/ui/models/{made}/delete").status_code == 403
    assert send(stranger, "/ui/models/tiny/delete").status_code == 403
    assert reader.get(f"/ui/models/{made}").status_code == 200
    absent = stranger.get("/ui/models/absent").text
    for path in (made, f"{made}/files/data.bin", f"{made}/export/safetensors"):
        assert stranger.get(f"/ui/models/{path}").status_code == 404
    assert stranger.get(f"/ui/models/{made}").text.replace(made, "absent") == absent
    assert made not in stranger.get("/ui/models").text
    assert "No jobs yet" in stranger.get("/ui/usage/figures").text


def test_no_form_of_another_site_does_anything(browser: TestClient, served: Domain) -> None:
    before, key = len(list_keys(served.database)), list_keys(served.database)[0].id
    for name in (
        "keys",
        f"keys/{key}/revoke",
        f"keys/{key}/rotate",
        "models",
        "models/tiny/delete",
        "models/tiny/export",
    ):
        assert browser.post(f"/ui/{name}", data={"owner": "x", "scopes": "admin"}).status_code == 403
        headers = {"origin": "http://evil.example"}
        word = form_token(browser.get("/ui/jobs").text)
        assert browser.post(f"/ui/{name}", data={"form_token": word}, headers=headers).status_code == 403
    assert len(list_keys(served.database)) == before
    assert browser.get("/ui/models/tiny").status_code == 200


def test_a_key_is_made_once_and_its_secret_is_shown_once(browser: TestClient, served: Domain) -> None:
    form = {"owner": "guest", "scopes": "read", "days": "2", "sending": "form-1"}
    made = send(browser, "/ui/keys", **form)
    first = find_key(served.database, secret_of(made.text))
    assert first is not None
    assert (first.owner, first.scopes, (first.expires_at or 0) - first.created_at) == ("guest", ["read"], 2 * 86_400)
    again = secret_of(send(browser, "/ui/keys", **form).text)
    key = find_key(served.database, again)
    assert key is not None
    assert key.id == first.id, "a reload makes no second key"
    assert again not in browser.get("/ui/keys").text
    rotated = secret_of(send(browser, f"/ui/keys/{key.id}/rotate").text)
    assert find_key(served.database, again) is None
    assert find_key(served.database, rotated) is not None
    assert send(browser, f"/ui/keys/{key.id}/revoke").status_code == 303
    assert find_key(served.database, rotated) is None
    assert "revoked" in browser.get("/ui/keys").text


def test_a_wrong_key_says_so_at_its_field(browser: TestClient) -> None:
    wrong: tuple[tuple[dict[str, str], str, str], ...] = (
        ({"owner": "Not Fine", "scopes": "read"}, "owner", "1 to 63 of a-z"),
        ({"owner": "x", "scopes": "root"}, "scopes", "one or more of"),
        ({"owner": "x"}, "scopes", "one or more of"),
        ({"owner": "x", "scopes": "read", "days": "0"}, "days", "1 to 36500"),
    )
    for fields, at, words in wrong:
        answer = send(browser, "/ui/keys", **fields)
        assert answer.status_code == 422
        assert re.search(rf'id="wrong-{at}"[^>]*>[^<]*{words}', answer.text)


def test_a_model_is_taken_away_file_by_file_and_whole(browser: TestClient, served: Domain) -> None:
    page = browser.get("/ui/models/tiny").text
    (link,) = re.findall(r'href="(/ui/models/tiny/files/[^"]+)"', page)
    file = browser.get(link)
    assert (file.content, file.headers["content-disposition"][:10]) == (b"some content", "attachment")
    whole = browser.get("/ui/models/tiny/export/safetensors")
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
        assert tar.getnames() == ["model.safetensors"]
    assert "sparse delta" not in page
    assert send(browser, "/ui/models/tiny/delete").headers["location"] == "/ui/models"
    assert browser.get("/ui/models/tiny").status_code == 404


def test_models_are_found_by_a_part_of_their_name_and_paged(
    browser: TestClient, served: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "AT_ONCE", 2)
    with served.database.transaction() as session:
        for number in range(5):
            made = Model(
                id=f"ft:tiny:owner:100%_{number}", owner=OWNER, created_at=number // 2, job_id="ftjob-x", files=[]
            )
            session.add(made)
    seen, path = [], "/ui/models?text="
    for _ in range(3):
        page = browser.get(path).text
        seen += re.findall(r"ft:tiny:owner:100%_(\d)</a>", page)
        path = "/ui/models" + html.unescape("".join(re.findall(r'href="(\?text[^"]+)" rel="next"', page)))
    assert (seen, path) == (["4", "3", "2", "1", "0"], "/ui/models")
    assert re.findall(r">([^<]+)</a></th>", browser.get("/ui/models?text=OWNER:100%25_3").text) == [
        "ft:tiny:owner:100%_3"
    ]
    assert "holds that" in browser.get("/ui/models?text=1000").text
    assert browser.get("/ui/models?after=ft:absent").status_code == 404


def test_an_admin_adds_what_the_operator_offers_and_nothing_else(
    app: FastAPI, browser: TestClient, sign_in: SignIn, tmp_path: Path
) -> None:
    assert "ALLO_MODELS_DIR" in browser.get("/ui/models").text
    offered = tmp_path / "offered"
    for folder in (offered / "broken", tmp_path / "outside"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    with_settings(app, models_dir=str(offered))
    page = browser.get("/ui/models").text
    assert "<option>broken</option>" in page
    assert "<option" not in sign_in(OWNER, "read", "submit").get("/ui/models").text
    for folder, words in (
        ("../outside", "no such folder"),
        ("broken", "must hold config.json"),
        ("", "no such folder"),
    ):
        answer = send(browser, "/ui/models", folder=folder, name="new")
        assert (answer.status_code, words in answer.text) == (422, True)


def test_usage_counts_bytes_jobs_and_time(app: FastAPI, browser: TestClient, served: Domain) -> None:
    served.submit(SUPERVISED)
    claimed = served.claim()
    with served.database.transaction() as session:
        stage = session.get(type(served.view(served.submit(SUPERVISED).job.id).stages[0]), claimed.stage_id)
        assert stage is not None
        stage.started_at, stage.devices = served.database.now() - 100, ["0", "1"]
    served.finish(claimed)
    page = browser.get("/ui/usage/figures").text
    assert re.search(r"1 min 4\d s of workers, and 3 min 2\d s of devices", page)
    assert "without a limit" in page
    with_settings(app, max_owner_bytes=1000)
    assert "<meter" in browser.get("/ui/usage/figures").text


def test_workers_are_told_again_and_again(browser: TestClient, served: Domain) -> None:
    part = browser.get("/ui/workers", headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert "worker" in part
    served.submit(SUPERVISED)
    served.claim()
    assert "running" in browser.get("/ui/workers").text


def test_a_key_that_ends_itself_leads_to_the_login(browser: TestClient, served: Domain) -> None:
    own = list_keys(served.database)[-1]
    create_key(served.database, OWNER, ("admin",))
    assert send(browser, f"/ui/keys/{own.id}/revoke").status_code == 303
    assert browser.get("/ui/keys").headers["location"].startswith("/ui/login")
