"""A job whose stage reward_model has a model of its own, or a teacher: checked before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.registry import models
from service.jobs.tables import Model
from tests.integration.service.domain import ALLO, Domain
from tests.tiny import tiny_tokenizer
from tests.waiting import PATIENCE

FIELD = "method.allo.stages.reward_model"


def tokenizer(folder: Path, *more: str) -> dict[str, Any]:
    fast = tiny_tokenizer()
    fast.add_tokens(list(more))
    fast.save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return found


def add_model(domain: Domain, name: str, content: dict[str, Any] | None, owner: str | None = None) -> None:
    files = [{"path": "model.safetensors", "bytes": domain.data.size, "sha256": domain.data.sha256}]
    if content is not None:
        blob = domain.store.put_stream([json.dumps(content).encode()])
        files.append({"path": "tokenizer.json", "bytes": blob.size, "sha256": blob.sha256})
    with domain.database.transaction() as session:
        session.add(Model(id=name, owner=owner, created_at=0, files=files))


def asking(model: str, rewriter: str) -> Any:
    return replace(ALLO, model=model, stages={"reward_model": {"model": rewriter}})


@pytest.fixture
def vocabulary(domain: Domain, tmp_path: Path) -> dict[str, Any]:
    """A large model's; another writes the same with pairs as merges and another way to cut a text that is too long."""
    found = tokenizer(tmp_path)
    add_model(domain, "large", found | {"model": {**found["model"], "merges": ["a b"]}})
    add_model(domain, "small", found | {"model": {**found["model"], "merges": [["a", "b"]]}, "truncation": None})
    return found


def test_the_stage_gets_the_files_of_the_model_that_it_names(domain: Domain, vocabulary: dict[str, Any]) -> None:
    del vocabulary
    job_id = domain.submit(asking("large", "small")).job.id
    small = models.read_model(domain.database, "owner", "small")
    seen = {}
    while domain.statuses(job_id)["reward_model"] != "succeeded":
        claimed = domain.claim()
        seen[claimed.name] = claimed.inputs
        domain.finish(claimed)
    given = {name: {(path, sha) for path, sha, _ in files} for name, files in seen["reward_model"].items()}
    assert given["model"] == {(file["path"], file["sha256"]) for file in small.files}
    assert given["policy"] != given["model"]


def test_another_rewriter_is_another_result(domain: Domain, vocabulary: dict[str, Any]) -> None:
    add_model(domain, "other", vocabulary | {"version": "2.0", "model": {**vocabulary["model"], "merges": ["a b"]}})
    domain.submit(asking("large", "small"))
    domain.run_all()
    domain.submit(asking("large", "small"))
    assert domain.run_all() == []
    domain.submit(asking("large", "other"))
    assert "reward_model" in domain.run_all()


def test_a_rewriter_of_another_vocabulary_is_refused_and_both_are_named(
    domain: Domain, vocabulary: dict[str, Any], tmp_path: Path
) -> None:
    del vocabulary
    add_model(domain, "more", tokenizer(tmp_path / "more", "<|tool|>"))
    add_model(domain, "bare", None)
    for rewriter, words in {
        "more": "'more' and 'large' have different",
        "bare": "'bare' has no tokenizer.json",
    }.items():
        with pytest.raises(InvalidRequest, match=words) as caught:
            domain.submit(asking("large", rewriter))
        assert caught.value.param == f"{FIELD}.model"


def test_a_rewriter_that_the_owner_may_not_see_does_not_exist(domain: Domain, vocabulary: dict[str, Any]) -> None:
    add_model(domain, "theirs", vocabulary, owner="stranger")
    for name in ("theirs", "nobodys"):
        with pytest.raises(NotFound) as caught:
            domain.submit(asking("large", name))
        assert (caught.value.param, caught.value.code) == (f"{FIELD}.model", "model_not_found")


@pytest.mark.parametrize(
    ("url", "hosts", "allowed"),
    [
        ("https://api.openai.com/v1", "api.openai.com", True),
        ("https://API.openai.com/v1", "other, api.openai.com", True),
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000/v1", "127.0.0.1", True),
        ("http://127.0.0.1:22/v1", "127.0.0.1:8000", False),
        ("http://169.254.169.254/latest", "api.openai.com", False),
        ("https://api.openai.com.evil.net/v1", "api.openai.com", False),
        ("https://api.openai.com/v1", "", False),
        ("http://[/v1", "api.openai.com", False),
        ("https://\u2100/v1", "api.openai.com", False),
    ],
)
def test_only_the_operators_hosts_are_asked_for_corrections_and_judgements(
    domain: Domain, url: str, hosts: str, allowed: bool
) -> None:
    sender = domain.sender(teacher_hosts=hosts)
    for stage, field in (("reward_model", "corrections"), ("evaluate", "judge")):
        new = replace(ALLO, stages={stage: {field: {"base_url": url, "model": "t"}}})
        if allowed:
            assert domain.submit(new, sender).job.method["stages"][stage][field]["base_url"] == url
            continue
        with pytest.raises(InvalidRequest, match="ALLO_TEACHER_HOSTS") as caught:
            domain.submit(new, sender)
        assert caught.value.param == f"method.allo.stages.{stage}.{field}.base_url"


def test_over_http_the_refusal_names_the_field(base_url: str, secret: str) -> None:
    stages = {"reward_model": {"corrections": {"base_url": "http://127.0.0.1:1/v1", "model": "t"}}}
    body = {"model": "tiny", "training_file": "file-train", "method": {"type": "allo", "allo": {"stages": stages}}}
    answer = httpx.post(
        f"{base_url}/fine_tuning/jobs", json=body, headers={"authorization": f"Bearer {secret}"}, timeout=PATIENCE
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == f"{FIELD}.corrections.base_url"
