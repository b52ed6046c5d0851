"""What a job learned, as its stages left it: where its masks lie, how wrong responses were rewarded, how good each of
its models is, and which answers changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from allo_engine.config import ForgetConfig
from service.jobs.errors import Conflict
from service.jobs.service import JobView
from service.jobs.tables import Stage
from service.storage.store import Store, lines_of

LARGEST = 2**23
"""Bytes of a file that is read whole, for people to look at."""

Layers = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Layer → module → its weights, and the share of them that each mask takes (see the engine's stages/locate.py)."""

Report = dict[str, Any]
"""{models, cases} (see the engine's stages/evaluate.py)."""

Change = Literal["gained", "lost"]


@dataclass(frozen=True)
class Token:
    """A token's text, the rewriter's probability that it stays, and how much forgetting took it back."""

    text: str
    probability: float
    weight: float


@dataclass(frozen=True)
class Response:
    """A wrong response; `length` counts the tokens that are not shown, too."""

    problem: str
    tokens: Sequence[Token]
    length: int


@dataclass(frozen=True)
class Answer:
    """What two models of a job answered to a held-out problem, and which way that changed."""

    change: Change
    problem: str
    ours: str
    theirs: str


def where(store: Store, view: JobView, stage: str = "locate") -> Layers | None:
    """Where the masks lie that a stage located, or those of an earlier job that this one trains in; None where nothing
    says so."""
    given = {path: (sha256, size) for path, sha256, size in view.job.sources.get("masks", ())}
    found = _read(store, _file(view, stage, "where.json") or given.get("where.json"))
    layers: Layers | None = None if found is None else json.loads(found)["layers"]
    return layers


def responses(store: Store, view: JobView) -> list[Response]:
    """A few wrong responses with their rewards; none where the job rewards no tokens, or has yet to."""
    found = _read(store, _file(view, "token_rewards", "examples.jsonl"))
    forgets = _stage(view, "forget")
    if found is None or forgets is None:
        return []
    config = ForgetConfig.model_validate(forgets.config)
    return [_response(json.loads(line), config) for line in found.splitlines()]


def report(store: Store, view: JobView) -> Report | None:
    """What the evaluation found; None where there is none, or none yet."""
    found = _read(store, _file(view, "evaluate", "report.json"))
    return None if found is None else json.loads(found)


def changes(report: Report, ours: str, theirs: str) -> dict[int, Change]:
    """The cases, by their places, that one of two models has right and the other not: gained where that is ours.
    Empty where such a report has no right and wrong."""
    rows = {row["model"]: row.get("cases", ()) for row in report["models"]}
    both = enumerate(zip(rows[ours], rows[theirs], strict=True))
    return {place: "gained" if right else "lost" for place, (right, other) in both if bool(right) != bool(other)}


def answers(store: Store, view: JobView, changed: Mapping[int, Change], ours: str, theirs: str) -> Iterator[Answer]:
    """The answers to the cases of some places, in their order; none where the models did not answer in words."""
    file = _file(view, "evaluate", "texts.jsonl")
    if file is None or not changed:
        return
    for place, line in enumerate(lines_of(store.open(file[0]))):
        if place in changed:
            told = json.loads(line)
            texts = (told["models"][name]["answer"] for name in (ours, theirs))
            yield Answer(changed[place], told["problem"], *texts)
        if place >= max(changed):
            return


def _response(line: Mapping[str, Any], config: ForgetConfig) -> Response:
    tokens = [
        Token(text, probability, 0.0 if is_end else config.weight(probability))
        for text, probability, is_end in zip(line["tokens"], line["probabilities"], line["ends"], strict=True)
    ]
    return Response(line["problem"], tokens, line["length"])


def _stage(view: JobView, name: str) -> Stage | None:
    return next((stage for stage in view.stages if stage.name == name), None)


def _file(view: JobView, stage: str, path: str) -> tuple[str, int] | None:
    """(sha256, bytes) of a file that a stage left."""
    row = _stage(view, stage)
    files = () if row is None else view.files.get(row.id, ())
    return next(((file.sha256, file.bytes) for file in files if file.path == path), None)


def _read(store: Store, file: tuple[str, int] | None) -> bytes | None:
    if file is None:
        return None
    if file[1] > LARGEST:
        raise Conflict(f"It has {file[1]} bytes, and up to {LARGEST} are shown: download it.")
    return b"".join(store.open(file[0]))
