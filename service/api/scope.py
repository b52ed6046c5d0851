"""What travels with a request in the ASGI scope."""

from __future__ import annotations

import secrets

from starlette.types import Scope


def request_id(scope: Scope) -> str:
    """The id of the request, made when it is first asked for."""
    state = scope.setdefault("state", {})
    found: str = state.setdefault("request_id", f"req-{secrets.token_hex(12)}")
    return found
