"""What travels with a request in the ASGI scope."""

from __future__ import annotations

import secrets

from starlette.types import Scope


def request_id(scope: Scope) -> str:
    """The id of the request, made when it is first asked for."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = new_request_id()
    return str(state["request_id"])


def new_request_id() -> str:
    """An id that no other request has."""
    return f"req-{secrets.token_hex(12)}"
