"""Models that are tried: a question to one of them, and its answer as it grows.

A worker answers, while it has no stage to run: training comes first. What is asked and answered is kept nowhere.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from anyio import CancelScope, CapacityLimiter, to_thread

from service.broker import BrokerDown
from service.db import Database
from service.exchange import AnswerLost, Caller, Exchange, Seat
from service.jobs.errors import DomainError, InvalidRequest, TooLong, Unavailable
from service.jobs.ids import new_id
from service.jobs.registry.served import Served, served
from service.storage.store import Store

MOST_TOKENS = 4096
"""Of one answer."""

MOST_ANSWERS = 8
"""To one question."""

ANSWER_SECONDS = 600.0
"""An answer takes no longer, from the question to its last word."""

TAKEN_SECONDS = 10.0
"""A worker that would answer takes a question at once; one that has not is gone, or trains."""

LOOK_SECONDS = 1.0
GONE_LOOKS = 5
"""Looks in a row without a word from the worker or a sign that it is there: it has died."""


@dataclass(frozen=True)
class Question:
    """What is asked: either `messages`, each {role, content}, or a `prompt` that is taken as it is.

    `max_tokens` None: as many as the model has room for, at most `most`. A `seed` gives the same answers again.
    """

    messages: Sequence[Mapping[str, str]] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    stop: Sequence[str] = ()
    most: int = MOST_TOKENS


@dataclass(frozen=True)
class Piece:
    """More of answer number `sample`, from 0. Its last piece has the `reason` why it ended, "stop" or "length", and how
    many `tokens` it has, the one that ends it included."""

    sample: int
    text: str
    reason: str | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What is on its way: the length of the prompt in tokens, and the answers' pieces as they come, which raise
    Unavailable where there are no more of them."""

    id: str
    prompt_tokens: int
    pieces: AsyncIterator[Piece]


class Trying:
    """Asks models. `workers` gives the names of those that live."""

    def __init__(
        self, database: Database, store: Store, exchange: Exchange, workers: Callable[[], Sequence[str]]
    ) -> None:
        self._database, self._store, self._exchange, self._workers = database, store, exchange, workers
        self._limiter: CapacityLimiter | None = None

    @asynccontextmanager
    async def asked(self, owner: str, model: str, question: Question) -> AsyncIterator[Answer]:
        """The answer of a model that the owner may see. Whoever leaves the block waits for no more of it.

        Raises NotFound; Unavailable where no worker would answer now; TooLong where the question and its answer have no
        room in the model; InvalidRequest for what the model cannot read.
        """
        self._limiter = self._limiter or CapacityLimiter(2)
        find = partial(served, self._database, self._store, owner, model)
        wanted = await to_thread.run_sync(find, limiter=self._limiter)
        workers = await to_thread.run_sync(self._workers, limiter=self._limiter)
        name = new_id("chat")
        with _broker_told():
            async with self._exchange.opened() as caller:
                worker = _chosen(await caller.seats(workers), wanted, bool(workers))
                await caller.ask(worker, name, {"served": asdict(wanted), "question": asdict(question)})
                try:
                    lines = self._lines(caller, worker)
                    yield Answer(name, await _began(lines), _pieces(lines))
                finally:
                    with CancelScope(shield=True), suppress(BrokerDown):
                        await caller.forget()

    async def _lines(self, caller: Caller, worker: str) -> AsyncIterator[Mapping[str, Any]]:
        """What the worker says, to its end. Raises what it says is wrong, and Unavailable where it says nothing."""
        began, taken, silent = time.monotonic(), False, 0
        with _broker_told():
            while True:
                lines = await caller.heard(LOOK_SECONDS)
                for line in lines:
                    if line["type"] == "error":
                        raise _error(line["code"], line["message"])
                    taken = True
                    yield line
                    if line["type"] == "done":
                        return
                silent = 0 if lines or await caller.seats([worker]) else silent + 1
                waited = time.monotonic() - began
                if silent >= GONE_LOOKS or (not taken and waited > TAKEN_SECONDS):
                    raise Unavailable("The worker that was to answer is gone, or has other work: ask again.")
                if waited > ANSWER_SECONDS:
                    raise Unavailable(
                        f"The answer took longer than {ANSWER_SECONDS:.0f} seconds: ask for fewer tokens."
                    )


async def _began(lines: AsyncIterator[Mapping[str, Any]]) -> int:
    """How long the prompt is, once the model has read it."""
    async for line in lines:
        if line["type"] == "began":
            return int(line["prompt_tokens"])
    raise Unavailable("The worker ended before it answered: ask again.")


async def _pieces(lines: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[Piece]:
    async for line in lines:
        if line["type"] == "text":
            yield Piece(line["sample"], line["text"])
        elif line["type"] == "end":
            yield Piece(line["sample"], "", line["reason"], line["tokens"])


def _chosen(seats: Mapping[str, Seat], wanted: Served, workers: bool) -> str:
    """Who is to answer: one that has the base in memory, else one that has none, else the one with the least to do."""
    if not workers:
        raise Unavailable("No worker is there to answer: `allo up` starts one, and so does `python -m worker`.")
    if not seats:
        raise Unavailable("No worker is free to answer: training comes first. Ask again once a stage has ended.")
    able = {name: seat for name, seat in seats.items() if wanted.base in seat.bases or seat.room >= wanted.weight_bytes}
    if not able:
        sizes = f"{wanted.weight_bytes / 2**30:.1f} GiB of weights; there is room for"
        most = max(seat.room for seat in seats.values()) / 2**30
        raise Unavailable(f"The model has {sizes} {most:.1f} at the workers that are free now.")
    return min(able, key=lambda name: _preference(name, able[name], wanted))


def _preference(name: str, seat: Seat, wanted: Served) -> tuple[bool, bool, int, str]:
    return wanted.base not in seat.bases, bool(seat.bases), seat.questions, name


def _error(code: str, message: str) -> DomainError:
    if code == TooLong.code:
        return TooLong(message, code=code)
    if code in ("bad_template", "empty_prompt"):
        return InvalidRequest(message, "messages", code)
    return Unavailable(message, code=code)


@contextmanager
def _broker_told() -> Iterator[None]:
    """What befalls a question at the broker, in the domain's words."""
    try:
        yield
    except AnswerLost:
        raise Unavailable("The answer was lost at the broker, which began anew: ask again.") from None
    except BrokerDown as error:
        raise Unavailable("The broker does not answer, through which models are asked: try again soon.") from error
