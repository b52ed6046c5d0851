"""The app's own routes, for tests that hold for every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute


@dataclass(frozen=True)
class Route:
    """One method of one path: `/v1/files/{file_id}`."""

    method: str
    path: str
    route: APIRoute

    def at(self, **parameters: str) -> str:
        """The path with these in it, and x for every other parameter."""
        names = self.route.param_convertors
        return self.path.format(**{name: parameters.get(name, "x") for name in names})

    @property
    def parts(self) -> list[Dependant]:
        return list(_parts(self.route.dependant))


def every_route(app: FastAPI) -> Iterator[Route]:
    for route in app.routes:
        contexts: Any = getattr(route, "effective_route_contexts", None)
        for found in contexts() if contexts else [route]:
            original = getattr(found, "original_route", found)
            if isinstance(original, APIRoute):
                path = found.path.replace(":path}", "}")
                yield from (Route(method, path, original) for method in sorted(found.methods))


def _parts(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _parts(part)
