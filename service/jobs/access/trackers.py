"""Which trackers jobs may name, and where these are: the operator's to say, for a job never leads the service to where
it would not go by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from service.jobs.errors import InvalidRequest

TITLES = {"mlflow": "MLflow", "wandb": "Weights & Biases", "trackio": "trackio"}
"""By the name of the library."""

_CHOSEN_BY = {"mlflow": "tracking_uri", "trackio": "space"}
"""The setting with which a job chooses among the places of a tracker."""

Integration = Mapping[str, Any]
"""`{type: "wandb", wandb: {…}}`, as OpenAI has it."""


def check(integrations: Sequence[Integration], allowed: str) -> None:
    """Raises InvalidRequest for a tracker or a place that is not `allowed`, and for one whose library is not here."""
    for index, one in enumerate(integrations):
        kind, param = one["type"], f"integrations.{index}"
        if kind in (other["type"] for other in integrations[:index]):
            raise InvalidRequest(f"A job is told to {TITLES[kind]} once: {kind} is named twice.", param, "invalid_job")
        place(kind, one[kind], allowed, f"{param}.{kind}")
        if find_spec(kind) is None:
            message = f"{TITLES[kind]} is not installed in this service: pip install 'allo[{kind}]' beside it."
            raise InvalidRequest(message, param, "tracker_missing")


def place(kind: str, settings: Mapping[str, Any], allowed: str, param: str | None = None) -> str | None:
    """Where a tracker is, None for where its library looks by itself. Raises InvalidRequest for what is not allowed."""
    places = read_places(allowed)
    if kind not in places:
        known = ", ".join(places) or "no tracker"
        message = f"This service tells jobs to {known}; its operator allows {kind} with ALLO_TRACKERS."
        raise InvalidRequest(message, param, "tracker_refused")
    field = _CHOSEN_BY.get(kind)
    wanted = settings.get(field) if field else None
    if wanted is None:
        return places[kind][0]
    if wanted not in places[kind]:
        message = f"This service tells {TITLES[kind]} at no such place: leave {field} out, or ask its operator."
        raise InvalidRequest(message, None if param is None else f"{param}.{field}", "tracker_refused")
    return str(wanted)


def read_places(allowed: str) -> dict[str, list[str | None]]:
    """The places of each tracker of `mlflow=http://host:5000,wandb`, in their order."""
    found = defaultdict[str, list[str | None]](list)
    for item in filter(None, allowed.split(",")):
        kind, _, where = item.strip().partition("=")
        found[kind].append(where or None)
    return found
