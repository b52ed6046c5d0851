"""trackio: a run named by the job, resumed for every telling. Its steps are the numbers of the job's events."""

from __future__ import annotations

from typing import Any

import trackio

from service.jobs.access.telling import Telling


def tell(telling: Telling) -> str:
    own = telling.settings.get("name")
    name = f"{own} {telling.job}" if own else telling.job  # runs of one name are one run
    run = trackio.init(
        project=telling.settings["project"],
        name=name,
        resume="allow",
        config=dict(telling.parameters),
        auto_log_gpu=False,
        auto_log_cpu=False,
        embed=False,
        **_place(telling.place),
    )
    known = run._next_step  # all below was told, by an attempt that could not say so
    for point in telling.points:
        if point.seq >= known:
            trackio.log({**point.named(), f"{point.stage}/step": point.step}, step=point.seq)
    if telling.results:
        trackio.log({**telling.results, "status": telling.status})
    trackio.finish()
    return name


def _place(place: str | None) -> dict[str, Any]:
    """A Space, a server of one's own, or this machine."""
    if place is None:
        return {}
    return {"server_url": place} if "://" in place else {"space_id": place}
