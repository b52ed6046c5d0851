"""Models that answer, as OpenAI's clients ask: a conversation, or a text to be gone on with; streamed or whole."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from service.api.asked import Asked, CreateChat, CreateCompletion
from service.api.completions import Chat, Completion, Plain
from service.api.context import Context, Parts, Reader, is_json
from service.api.errors import envelope_of
from service.api.live import EventStream
from service.jobs.errors import DomainError
from service.jobs.tables import ApiKey
from service.jobs.trying import Answer

router = APIRouter(dependencies=[Depends(is_json)])

GONE = 499
"""For the log: the client went away, and nobody hears this."""

Result = TypeVar("Result")


@router.post("/chat/completions", response_model=None)
async def create(request: Request, parts: Parts, key: Reader, body: CreateChat) -> Response | dict[str, Any]:
    """A model's answer to a conversation. With `stream` it comes as it grows, by Server-Sent Events.

    Any model that the key may read answers: a base, or what a job's stages left. A worker answers while it has no stage
    to run, and 503 says that none is free. Whoever goes away is not answered any further.
    """
    return await _answered(request, parts, key, body, Chat)


@router.post("/completions", response_model=None)
async def complete(request: Request, parts: Parts, key: Reader, body: CreateCompletion) -> Response | dict[str, Any]:
    """How a model goes on with a text, which it reads as it is, without its chat template."""
    return await _answered(request, parts, key, body, Plain)


async def _answered(
    request: Request, parts: Context, key: ApiKey, body: Asked, kind: type[Completion]
) -> Response | dict[str, Any]:
    request.state.about = body.model
    question = body.question(secrets.randbelow(2**31))
    async with AsyncExitStack() as held:
        held.enter_context(parts.answering.open(key.owner))
        asked = held.enter_async_context(parts.trying.asked(key.owner, body.model, question))
        answer = await _while_there(request, asked)
        if answer is None:
            return Response(status_code=GONE)
        told = kind(answer, body.model, parts.database.now(), question.n)
        if body.stream:
            return AnswerStream(_streamed(answer, told, body.wants_usage), held.pop_all())
        whole = await _while_there(request, _whole(answer, told))
        return Response(status_code=GONE) if whole is None else whole


async def _while_there(request: Request, work: Awaitable[Result]) -> Result | None:
    """What `work` gives; None where the client went away first, and the work was given up."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(answer: Answer, told: Completion) -> dict[str, Any]:
    async for piece in answer.pieces:
        told.add(piece)
    return told.whole()


async def _streamed(answer: Answer, told: Completion, usage: bool) -> AsyncIterator[bytes]:
    """The chunks. No line but `data`: OpenAI's reader takes whatever else stands between two empty lines for one."""
    try:
        for chunk in told.first():
            yield _event(chunk, usage)
        async for piece in answer.pieces:
            told.add(piece)
            yield _event(told.chunk(piece), usage)
        if usage:
            yield _event(told.last(), usage=False)
        yield b"data: [DONE]\n\n"
    except DomainError as error:
        yield b"data: " + envelope_of(error) + b"\n\n"


def _event(chunk: dict[str, Any], usage: bool) -> bytes:
    return b"data: " + to_json({**chunk, "usage": None} if usage else chunk) + b"\n\n"


class AnswerStream(EventStream):
    """A stream that is no longer answered once it ends, however it does."""

    def __init__(self, content: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(content, ExitStack())
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)
