"""Questions to models and their answers, on their way between the web process and the workers: through the broker.

No worker listens on a port. What is under way lasts as long as somebody waits for it, and so it stands in no database:

    <queue>.chat.seat.<worker>    a worker that would answer now says what it has; gone a few seconds after it said so
    <queue>.chat.asked.<worker>   a list of what it is asked
    <queue>.chat.answer.<id>      a stream of what it answers, made by whoever asks, who also takes it away: a worker
                                  that finds it gone stops answering

The web process has the asynchronous side, workers the other. Both raise BrokerDown.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from service.broker import TIMEOUT_SECONDS, BrokerDown
from service.brokers import for_redis, told

if TYPE_CHECKING:
    import redis
    import redis.asyncio

SEAT_SECONDS = 5
"""For how long a worker's word counts that it would answer; it gives it every second."""

ASKED_SECONDS = 60
WAITED_SECONDS = 30
"""For how long an answer is kept that nobody comes for: whoever waits says so again and again."""

MOST_LINES = 50_000
"""Of an answer that nobody reads on. One has a line a token at most, and at most MOST_TOKENS of them."""

OPTIONS: Mapping[str, Any] = {
    "socket_timeout": TIMEOUT_SECONDS,
    "socket_connect_timeout": TIMEOUT_SECONDS,
    "protocol": 2,  # its shape of answers is the one that every server knows
}

Line = Mapping[str, Any]


class AnswerLost(Exception):
    """The broker has no more of an answer: it began anew, or nobody heard it for WAITED_SECONDS."""


@dataclass(frozen=True)
class Seat:
    """A worker that would answer: the names of the bases that it holds, how many questions it has, and the bytes of the
    largest weights that it would load."""

    bases: list[str]
    questions: int
    room: int


class Names:
    """What is called how."""

    def __init__(self, queue: str) -> None:
        self._queue = queue

    def of(self, kind: str, name: str) -> str:
        return f"{self._queue}.chat.{kind}.{name}"


class Exchange:
    """Where the web process asks."""

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._names = url, Names(queue)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Caller]:
        """A connection of its own for one question: whoever asks waits on it."""
        from redis.asyncio import Redis  # here: the web process begins without it
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        client = Redis.from_url(for_redis(self._url), retry=Retry(NoBackoff(), 0), **OPTIONS)
        try:
            yield Caller(client, self._names)
        finally:
            await client.aclose()


class Caller:
    """One question's way: who would answer it, the question, what comes back."""

    def __init__(self, client: redis.asyncio.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._stream, self._last = "", "0"

    async def seats(self, workers: Sequence[str]) -> dict[str, Seat]:
        """Those of the workers that would answer now."""
        if not workers:
            return {}
        with _told():
            found = await self._client.mget([self._names.of("seat", worker) for worker in workers])
        return {
            worker: Seat(**json.loads(word)) for worker, word in zip(workers, found, strict=True) if word is not None
        }

    async def ask(self, worker: str, name: str, question: Line) -> None:
        """Ask the worker; what it answers is to be heard from now on."""
        self._stream = self._names.of("answer", name)
        asked = self._names.of("asked", worker)
        with _told():
            async with self._client.pipeline(transaction=True) as steps:
                steps.xadd(self._stream, {"line": json.dumps({"type": "asked"})})
                steps.expire(self._stream, WAITED_SECONDS)
                steps.rpush(asked, json.dumps({"id": name, **question}))
                steps.expire(asked, ASKED_SECONDS)
                self._last = (await steps.execute())[0]

    async def heard(self, seconds: float) -> list[dict[str, Any]]:
        """What was answered since, waited for no longer than so many seconds. Raises AnswerLost."""
        with _told():
            found: Any = await self._client.xread({self._stream: self._last}, block=round(1000 * seconds))
            entries = found[0][1] if found else []
            async with self._client.pipeline(transaction=False) as steps:
                if entries:
                    self._last = entries[-1][0]
                    steps.xtrim(self._stream, minid=self._last, approximate=False)
                steps.expire(self._stream, WAITED_SECONDS)
                *_, is_there = await steps.execute()
        if not is_there:
            raise AnswerLost
        return [json.loads(fields[b"line"]) for _, fields in entries]

    async def forget(self) -> None:
        """Nobody waits any more."""
        if self._stream:
            with _told():
                await self._client.delete(self._stream)


class Desk:
    """Where a worker is asked and answers."""

    def __init__(self, url: str, queue: str, worker: str) -> None:
        self._url, self._names, self._worker = url, Names(queue), worker

    def offer(self, seat: Seat) -> None:
        """Say that this worker would answer."""
        with _told():
            self._client.set(self._names.of("seat", self._worker), json.dumps(asdict(seat)), ex=SEAT_SECONDS)

    def withdraw(self) -> None:
        """Say that it would not, any more."""
        with _told():
            self._client.delete(self._names.of("seat", self._worker))

    def taken(self, seconds: float) -> dict[str, Any] | None:
        """The next question; waits for one so long."""
        with _told():
            found: Any = self._client.blpop([self._names.of("asked", self._worker)], timeout=seconds)
        return None if found is None else json.loads(found[1])

    def tell(self, name: str, line: Line) -> bool:
        """Answer; False where nobody waits for it any more."""
        entry: Any = {"line": json.dumps(line)}
        with _told():
            stream = self._names.of("answer", name)
            return self._client.xadd(stream, entry, nomkstream=True, maxlen=MOST_LINES) is not None

    def close(self) -> None:
        self._client.close()

    @cached_property
    def _client(self) -> redis.Redis:
        from redis import Redis

        return Redis.from_url(for_redis(self._url), **OPTIONS)


@contextmanager
def _told() -> Iterator[None]:
    """Raises BrokerDown for whatever the client raises of its connection."""
    from redis import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        raise BrokerDown(told(error)) from error
