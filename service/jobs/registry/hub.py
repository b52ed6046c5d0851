"""A job as a repository of the Hugging Face Hub: `jobs/<job id>`, its revisions the models that its stages left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allo_engine.pipeline import MODELS
from allo_engine.rounds import kind_of
from service.db import Database
from service.jobs import repository
from service.jobs.errors import DomainError, NotFound
from service.jobs.progression import checkpoint_model
from service.jobs.registry.cards import card
from service.jobs.service import JobView, read
from service.jobs.tables import Model

NAMESPACE = "jobs"
MAIN = "main"
CARD = "README.md"


class Absent(NotFound):
    """What the Hub's client tells apart: `code` is RepoNotFound, RevisionNotFound or EntryNotFound."""


@dataclass(frozen=True)
class Revision:
    """One state of the repository. `commit` names its content: the same 40 hex digits are the same weights."""

    repository: str
    name: str
    commit: str
    created_at: int
    files: tuple[Mapping[str, Any], ...]
    """{path, bytes, sha256} of each file, the card not among them."""
    card: bytes

    def file(self, path: str) -> Mapping[str, Any]:
        """One of every file. Raises Absent."""
        for file in self.every_file:
            if file["path"] == path:
                return file
        raise Absent(f"Revision {self.name} has no file {path!r}.", code="EntryNotFound")

    @property
    def every_file(self) -> tuple[Mapping[str, Any], ...]:
        """The files, and the card as one of them."""
        card = {"path": CARD, "bytes": len(self.card), "sha256": hashlib.sha256(self.card).hexdigest()}
        return (*self.files, card)


def revisions(database: Database, owner: str, namespace: str, name: str) -> list[Revision]:
    """The repository's revisions, `main` first where the job has succeeded. Raises Absent."""
    if namespace != NAMESPACE:
        raise _no_repository(namespace, name)
    try:
        view = read(database, owner, name)
    except NotFound:
        raise _no_repository(namespace, name) from None
    with database.snapshot() as session:
        models = {model.id: model for model in repository.models_of_job(session, owner, name)}
        base = repository.model(session, owner, view.job.model)
    found = ((revision, models.get(model)) for revision, model in _names(view).items())
    return [_revision(view, revision, model, base) for revision, model in found if model is not None]


def revision(database: Database, owner: str, namespace: str, name: str, wanted: str = MAIN) -> Revision:
    """The revision of this name or commit. Raises Absent."""
    found = revisions(database, owner, namespace, name)
    for state in found:
        if wanted in (state.name, state.commit):
            return state
    there = ", ".join(state.name for state in found) or "none yet"
    raise Absent(f"{namespace}/{name} has no revision {wanted!r}; it has: {there}.", code="RevisionNotFound")


def _names(view: JobView) -> dict[str, str]:
    """Each revision's model: `main` is the job's own result, and the others are called as the stages that left them."""
    job = view.job
    left = [stage.name for stage in view.stages if kind_of(stage.name) in MODELS]
    if left and kind_of(left[-1]) == "improve":
        left.pop()  # it is main
    checkpoints = {"forgotten" if name == "forget" else name: checkpoint_model(job, name) for name in left}
    return ({MAIN: job.fine_tuned_model} if job.fine_tuned_model else {}) | checkpoints


def _revision(view: JobView, name: str, model: Model, base: Model | None) -> Revision:
    content = json.dumps([view.job.id, name, _content(model.files)])
    return Revision(
        repository=f"{NAMESPACE}/{view.job.id}",
        name=name,
        commit=hashlib.sha256(content.encode()).hexdigest()[:40],
        created_at=model.created_at,
        files=tuple(model.files),
        card=card(view, name, base),
    )


def _content(files: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return sorted([file["path"], file["sha256"]] for file in files)


def _no_repository(namespace: str, name: str) -> DomainError:
    return Absent(
        f"There is no repository {namespace}/{name}: name a job of yours as {NAMESPACE}/<job id>.", code="RepoNotFound"
    )
