"""The web process, wired: the only place that knows which database, store and broker there are."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from service.api import (
    artifacts,
    chat,
    docs,
    estimate,
    events,
    exports,
    files,
    health,
    hub,
    insight,
    jobs,
    keys,
    metrics,
    models,
    sweeps,
    uploads,
    webhooks,
    workers,
)
from service.api.access import Access
from service.api.audited import Audited
from service.api.checks import Health
from service.api.context import Context
from service.api.errors import add_error_handlers
from service.api.guard import PAGES, Guard
from service.api.intake import Intake
from service.api.limits import AtOnce, Rates
from service.api.live import Feed
from service.api.meters import Meters
from service.api.query import known_query
from service.api.reading import Answers, make_readers
from service.broker import Broker, CeleryBroker
from service.db import Database
from service.engines import Patience, takes_one_writer
from service.exchange import Exchange
from service.footprint import settle
from service.gate import Bounded
from service.jobs.access.keys import KeyRing
from service.jobs.access.sessions import find_session
from service.jobs.access.trackers import read_places
from service.jobs.data.insights import Insights
from service.jobs.data.marking import marked
from service.jobs.forecast.counting import Counts
from service.jobs.forecast.errands import Scratch
from service.jobs.forecast.expecting import Expectations
from service.jobs.running.workers import Watch
from service.jobs.trying import Trying
from service.migrating import migrate
from service.pages.app import create_pages, home, prepare
from service.settings import Settings
from service.storage import open_store
from service.trackers.courier import Teller
from service.webhooks.courier import Courier

PATIENCE = Patience(connect=3, statement=10, lock=5)
"""Of requests, seconds: whoever asked would rather hear that it did not work."""

REST = 2.0
"""Seconds after the start in which requests have the interpreter for themselves."""

WRITERS = 16
"""Threads that may wait to write, of the 40 that there are: the others are left to those who wait for nothing."""

STRANGERS = 8
"""Threads that may wait for what is not ours: names to be looked up, receivers of a sample."""


def create_app(settings: Settings, broker: Broker | None = None) -> FastAPI:
    """The app over the parts that the settings name, their tables brought up to date."""
    settings.open_data_dir()
    migrate(settings.database)
    gate = Bounded(WRITERS, inside=1 if takes_one_writer(settings.database) else WRITERS)
    database = Database(settings.database, patience=PATIENCE, gate=gate)
    broker = broker or CeleryBroker(settings.broker_url, settings.queue)
    context = _context(settings, database, broker)
    pages = create_pages(context)

    @asynccontextmanager
    async def at_work(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(context.feed.run())
        preparing = asyncio.create_task(_prepared(pages))
        with ExitStack() as couriers:
            couriers.enter_context(Courier(database, settings.webhook_private))
            couriers.enter_context(marked(database, context.store))
            for teller in _tellers(settings, database):
                couriers.enter_context(teller)
            yield
        preparing.cancel()
        await asyncio.wait([preparing])
        context.feed.close()
        await looking
        context.close()

    app = FastAPI(
        title="ALLO",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(known_query)],
        generate_unique_id_function=_operation_id,
        lifespan=at_work,
    )
    app.state.context = context
    app.add_middleware(Audited, settings=settings, database=database)
    app.add_middleware(
        Guard,
        settings=settings,
        keys=context.keys,
        rates=Rates(settings.requests_per_minute),
        sessions=partial(find_session, database),
    )
    app.add_middleware(Access, meters=context.meters)  # the last one added is the outermost
    add_error_handlers(app)
    _add_routes(app, pages)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _context(settings: Settings, database: Database, broker: Broker) -> Context:
    """What requests find beside the app: the store and the parts that wait, count and remember."""
    store = open_store(settings.store, settings.s3)
    watch = Watch(settings.lease_seconds)
    apart = Database(settings.database, patience=PATIENCE)  # whatever requests wait for, these connections are free
    scratch = Scratch(store, settings.data_dir / "scratch")
    readers = make_readers()
    counts = Counts(scratch)
    store.tidy()
    return Context(
        settings=settings,
        database=database,
        store=store,
        watch=watch,
        answers=Answers(database, readers),
        readers=readers,
        comparing=CapacityLimiter(1),
        strangers=CapacityLimiter(STRANGERS),
        intake=Intake(settings.max_uploads, settings.max_owner_uploads),
        meters=Meters(),
        health=Health(_checks(settings, apart, broker, watch), apart.close),
        keys=KeyRing(database),
        streams=AtOnce(settings.max_streams, "streams"),
        answering=AtOnce(settings.max_owner_answers, "answers under way"),
        trying=Trying(
            database,
            store,
            Exchange(settings.broker_url, settings.queue),
            lambda: list(watch.living(database)),
        ),
        feed=Feed(database),
        insights=Insights(scratch),
        counts=counts,
        expectations=Expectations(database, store, counts, lambda: watch.living(database), settings.teacher_hosts),
    )


def _tellers(settings: Settings, database: Database) -> list[Teller]:
    """One for each tracker that the operator allows."""
    allowed, folder = settings.trackers, settings.data_dir / "trackers"
    return [Teller(database, name, allowed, folder) for name in read_places(allowed)]


def _add_routes(app: FastAPI, pages: FastAPI) -> None:
    """Health comes first: routes are put together when a request first passes them, and it is to answer at once; so are
    pages. Then what is polled: routes are tried in turn."""
    app.include_router(health.router)
    app.add_route("/", home, ["GET"], include_in_schema=False)
    app.mount(PAGES, pages)
    parts = (estimate, jobs, events, sweeps, files, uploads, artifacts, exports, models, chat, webhooks, workers, keys)
    for router in (*(part.router for part in parts), keys.log, webhooks.tests, webhooks.types, insight.router):
        app.include_router(router, prefix="/v1")
    for router in (hub.router, metrics.router, docs.router, docs.document):
        app.include_router(router)


async def _prepared(pages: FastAPI) -> None:
    """Behind whoever waits for the process to start. What is begun is waited for: it asks the database."""
    await asyncio.sleep(REST)
    stopped = threading.Event()
    making = asyncio.ensure_future(asyncio.to_thread(prepare, pages, stopped))
    try:
        await asyncio.shield(making)
        settle()
    finally:
        stopped.set()
        await making


def _operation_id(route: APIRoute) -> str:
    """`jobs.create`: the endpoint's module and name; unique, and what generated clients call a method."""
    folder = "_of_folder" if route.path.endswith("{folder:path}") else ""  # the one endpoint with two paths
    return f"{route.endpoint.__module__.rpartition('.')[2]}.{route.name}{folder}"


def _described(app: FastAPI) -> dict[str, Any]:
    """The app's own description, made when it is first asked for."""
    if app.openapi_schema is None:
        from service.api.openapi import document  # here: few ask for it

        app.openapi_schema = document(app)
    return app.openapi_schema


def _checks(settings: Settings, database: Database, broker: Broker, watch: Watch) -> Mapping[str, Callable[[], bool]]:
    """What /readyz asks. Each may raise, and may hang."""

    def answers(ping: Callable[[], None]) -> bool:
        ping()
        return True

    return {
        "database": lambda: answers(database.ping),
        "broker": lambda: answers(broker.ping),
        "disk": lambda: shutil.disk_usage(settings.data_dir).free >= settings.min_free_bytes,
        "worker": lambda: bool(watch.living(database)),
    }


def from_environment() -> FastAPI:
    """For a server that starts the app itself: `uvicorn --factory service.app:from_environment`."""
    return create_app(Settings.from_environment())
