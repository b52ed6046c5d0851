"""Whether the service is alive, and whether it can do its work. The only routes without a key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from service.api.context import Context, Parts
from service.broker import BrokerDown

router = APIRouter()


@router.get("/healthz")
def alive() -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def ready(parts: Parts, response: Response) -> dict[str, Any]:
    """Each part that the service needs, and 503 where one of them is not there. Workers come and go: without one the
    service takes jobs, which wait."""
    checks: dict[str, Callable[[], bool]] = {
        "database": lambda: _answers(parts.database.ping),
        "broker": lambda: _answers(parts.broker.ping),
        "disk": lambda: _has_space(parts),
    }
    found = {name: check() for name, check in checks.items()}
    response.status_code = 200 if all(found.values()) else 503
    status = "ok" if all(found.values()) else "unavailable"
    return {"status": status, "checks": found, "workers": len(parts.workers()) if found["database"] else None}


def _answers(ping: Callable[[], None]) -> bool:
    try:
        ping()
    except (BrokerDown, SQLAlchemyError):
        return False
    return True


def _has_space(parts: Context) -> bool:
    return shutil.disk_usage(parts.settings.data_dir).free >= parts.settings.min_free_bytes
