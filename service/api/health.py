"""Whether the service is alive, and whether it can do its work. The only routes without a key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from service.api.context import Parts
from service.jobs.running.placement import Offer

router = APIRouter(tags=["Operations"])


class Alive(TypedDict):
    status: Literal["ok"]


class Checks(TypedDict):
    """Whether each part answered within a second, and a worker lives."""

    database: bool
    broker: bool
    disk: bool
    worker: bool


class Kind(TypedDict):
    kind: str
    memory_bytes: int | None


class Living(TypedDict):
    """What a worker that lives has. Who it is and what it runs is for admins: /v1/workers."""

    devices: list[Kind]
    memory_bytes: int
    precisions: list[str]
    backends: list[str]
    code_version: str


class Ready(TypedDict):
    status: Literal["ok", "no_worker", "unavailable"]
    checks: Checks
    workers: list[Living]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def alive() -> Alive:
    """The process answers. This asks nobody else."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Ready, "description": "A part is not there."}})
async def ready(parts: Parts, response: Response) -> Ready:
    """Each part that the service needs, and 503 where one is not there. Workers come and go: without one the service
    takes jobs, which wait, and it says `no_worker`. The answer is up to two seconds old."""
    found = await parts.health.verdicts()
    checks: Checks = {name: found[name] for name in ("database", "broker", "disk", "worker")}  # type: ignore[assignment]
    if not (checks["database"] and checks["broker"] and checks["disk"]):
        response.status_code = 503
        return {"status": "unavailable", "checks": checks, "workers": []}
    workers = [_living(offer) for offer in parts.watch.seen.values()] if checks["worker"] else []
    return {"status": "ok" if workers else "no_worker", "checks": checks, "workers": workers}


def _living(offer: Offer) -> Living:
    return {
        "devices": [{"kind": device.kind, "memory_bytes": device.bytes} for device in offer.devices],
        "memory_bytes": offer.host_bytes,
        "precisions": list(offer.precisions),
        "backends": list(offer.packages),
        "code_version": offer.code,
    }
