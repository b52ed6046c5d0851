"""What stages name outside the job: a rewriter of its own, a teacher, a judge. All are checked at submit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from allo_engine.config import RewardModelConfig, Teacher
from allo_engine.pipeline import Method, PlannedStage
from service.jobs import repository
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.tables import Model
from service.storage.store import Store

_STAGE = "method.allo.stages.reward_model"
_TOKENIZER = "tokenizer.json"


def find_rewriter(
    session: Session, store: Store, owner: str, planned: Sequence[PlannedStage], model: Model
) -> Model | None:
    """The model of its own that stage reward_model names, if it does.

    Raises NotFound where the owner may see no such model, InvalidRequest where its vocabulary is not the job's.
    """
    config = _config(planned)
    if config is None or config.model is None:
        return None
    rewriter = repository.model(session, owner, config.model)
    if rewriter is None:
        raise NotFound(f"The model {config.model!r} does not exist.", f"{_STAGE}.model", "model_not_found")
    if _vocabulary(store, rewriter) != _vocabulary(store, model):
        raise InvalidRequest(
            f"Models {rewriter.id!r} and {model.id!r} have different vocabularies, so that the one cannot judge the "
            "other's tokens: name a model of the same family, or leave reward_model.model out.",
            f"{_STAGE}.model",
            "invalid_job",
        )
    return rewriter


def check_teachers(method: Method, planned: Sequence[PlannedStage], hosts: str) -> None:
    """Raises InvalidRequest where an endpoint that a job asks is at a host that the operator does not allow."""
    allowed = {host.strip().lower() for host in hosts.split(",") if host.strip()}
    for stage in planned:
        for name in ("corrections", "judge"):
            teacher: Teacher | None = getattr(stage.config, name, None)
            if teacher and not _names(teacher.base_url) & allowed:
                known = ", ".join(sorted(allowed)) or "nobody"
                raise InvalidRequest(
                    f"This service asks nobody at {teacher.base_url!r:.200}; it asks {known}. Its "
                    "operator allows hosts with ALLO_TEACHER_HOSTS.",
                    f"method.{method}.stages.{stage.name}.{name}.base_url",
                    "teacher_refused",
                )


def _names(url: str) -> set[str]:
    """What the operator may call the host of a URL: by its name, or with its port."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it has brackets, or letters, that no host has
        return set()
    return {parts.netloc.lower(), parts.hostname or parts.netloc.lower()}


def _config(planned: Sequence[PlannedStage]) -> RewardModelConfig | None:
    return next((cast(RewardModelConfig, stage.config) for stage in planned if stage.name == "reward_model"), None)


def _vocabulary(store: Store, model: Model) -> str:
    """A word that two models share where text becomes the same ids."""
    sha256 = next((file["sha256"] for file in model.files if file["path"] == _TOKENIZER), None)
    if sha256 is None:
        raise InvalidRequest(
            f"Model {model.id!r} has no {_TOKENIZER} to compare: add it to the model's folder and register that.",
            f"{_STAGE}.model",
            "invalid_job",
        )
    if sha256 not in _vocabularies:
        _vocabularies[sha256] = _told_by(json.loads(b"".join(store.open(sha256))))
    return _vocabularies[sha256]


_vocabularies: dict[str, str] = {}
"""By the sha256 of a tokenizer.json: reading one takes a part of a second, and a transaction is open meanwhile."""


def _told_by(found: dict[str, Any]) -> str:
    """Of the parts of tokenizer.json that ids depend on."""
    parts = found["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts.get("merges") or []]
    added = {token["id"]: token["content"] for token in found.get("added_tokens") or []}
    text = json.dumps([parts.get("type"), parts["vocab"], merges, added], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
