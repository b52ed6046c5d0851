"""What an endpoint works with: the parts that `service.app` wired, and the key that sent the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from service.api.checks import Health
from service.api.intake import Intake
from service.api.limits import AtOnce
from service.api.live import Feed
from service.api.meters import Meters
from service.api.reading import Answers
from service.db import Database
from service.jobs.access.keys import KeyRing, Scope
from service.jobs.data.insights import Insights
from service.jobs.errors import Forbidden
from service.jobs.forecast.counting import Counts
from service.jobs.forecast.expecting import Expectations
from service.jobs.running.placement import Offer
from service.jobs.running.workers import Watch, WorkerView
from service.jobs.tables import ApiKey
from service.jobs.trying import Trying
from service.settings import Settings
from service.storage.store import Store


@dataclass(frozen=True)
class Context:
    """The parts of the running service."""

    settings: Settings
    database: Database
    store: Store
    watch: Watch
    answers: Answers
    readers: CapacityLimiter
    comparing: CapacityLimiter
    """One comparison at a time: it draws millions of cases, and holds the reports."""
    strangers: CapacityLimiter
    """Threads that wait for what is not ours, such as who a name belongs to: they hold up one another alone."""
    intake: Intake
    meters: Meters
    health: Health
    keys: KeyRing
    streams: AtOnce
    answering: AtOnce
    trying: Trying
    insights: Insights
    counts: Counts
    expectations: Expectations
    feed: Feed

    def close(self) -> None:
        """Ends what is open."""
        self.expectations.close()
        self.database.close()
        self.health.close()

    def workers(self) -> list[WorkerView]:
        """The workers that live, as far as this process has watched them."""
        return self.watch.views(self.database)

    def offers(self) -> Mapping[str, Offer]:
        """What they offer, by their names."""
        return self.watch.living(self.database)


async def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def _require(scope: Scope) -> Callable[[Request], Awaitable[ApiKey]]:
    async def key(request: Request) -> ApiKey:
        key = request.state.key
        assert isinstance(key, ApiKey)
        if scope not in key.scopes and "admin" not in key.scopes:
            raise Forbidden(f"This key has no scope {scope!r}; it has {', '.join(key.scopes)}.")
        return key

    return key


def body_type(wanted: str, advice: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses every body but one of the media type `wanted`, however it is spelt."""

    async def check(request: Request) -> None:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != wanted:
            raise HTTPException(415, advice)

    return check


is_json = body_type("application/json", "Send the body as application/json.")

Parts = Annotated[Context, Depends(_context)]
Reader = Annotated[ApiKey, Depends(_require("read"))]
Admin = Annotated[ApiKey, Depends(_require("admin"))]
Submitter = Annotated[ApiKey, Depends(_require("submit"))]
Meter = Annotated[ApiKey, Depends(_require("metrics"))]
