"""Query parameters that a route does not have are refused by name: a misspelt one would otherwise be ignored."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from service.jobs.errors import InvalidRequest


class Prefixed:
    """A dependency that reads `prefix[name]=value` parameters, as OpenAI's clients write a mapping."""

    def __init__(self, prefix: str, at_most: int) -> None:
        self.prefix, self._at_most = prefix, at_most

    async def __call__(self, request: Request) -> dict[str, str]:
        found = {name: value for name, value in request.query_params.items() if self.names(name)}
        if len(found) > self._at_most:
            raise InvalidRequest(f"At most {self._at_most} parameters {self.prefix}[…] are taken.", self.prefix)
        return {name[len(self.prefix) + 1 : -1]: value for name, value in found.items()}

    @property
    def documented(self) -> dict[str, Any]:
        """What FastAPI adds to the document of a route that has these."""
        mapping = {"type": "object", "maxProperties": self._at_most, "additionalProperties": {"type": "string"}}
        return {"parameters": [{"name": self.prefix, "in": "query", "style": "deepObject", "schema": mapping}]}

    def names(self, parameter: str) -> bool:
        """Whether the parameter is one of these."""
        return parameter.startswith(f"{self.prefix}[") and parameter.endswith("]")


async def known_query(request: Request) -> None:
    """For every route: raises InvalidRequest for a parameter that the route's own signature does not have, and for one
    that is given twice and is no list."""
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    parts = list(_parts(route.dependant))
    fields = {field.alias: field for part in parts for field in part.query_params}
    known, lists = sorted(fields), {name for name, field in fields.items() if _is_list(field.field_info.annotation)}
    families = [part.call for part in parts if isinstance(part.call, Prefixed)]
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known and not any(family.names(name) for family in families):
            raise InvalidRequest(_unknown(name, [*known, *(f"{family.prefix}[…]" for family in families)]), name)
        if name in seen and name not in lists:
            raise InvalidRequest(f"The query parameter {name:.60} is given twice.", name)
        seen.add(name)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def _parts(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _parts(part)


def _unknown(name: str, known: list[str]) -> str:
    close = get_close_matches(name[:60], known, 1)
    if close:
        hint = f"did you mean {close[0]}?"
    else:
        hint = f"this route takes {', '.join(known)}." if known else "this route takes none."
    return f"There is no query parameter {name[:60]!r}: {hint}"
