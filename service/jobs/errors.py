"""What can be wrong with a request to the domain. Meaning only: `service.api.errors` alone knows HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DomainError(Exception):
    """The base: a message for the user, the field that it is about, a code for programs, and whatever else helps."""

    code: str = "invalid_request"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code or type(self).code
        self.details = dict(details or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.param, self.code, self.details)


class NotFound(DomainError):
    """No such object, or another owner's: the two are told apart nowhere."""

    code = "not_found"


class InvalidRequest(DomainError):
    """A field's value cannot be; the message says what could."""

    code = "invalid_value"


class TooLong(DomainError):
    """More tokens than the model reads."""

    code = "context_length_exceeded"


class TooLarge(DomainError):
    """More bytes than are taken."""

    code = "request_too_large"


class Forbidden(DomainError):
    """The key may see the object but not do this to it."""

    code = "permission_denied"


class Conflict(DomainError):
    """The object's present state does not allow it, and asking again will not help."""

    code = "conflict"


class Busy(Conflict):
    """A Conflict that ends by itself in a moment: asking again helps."""

    code = "busy"


class TooMany(DomainError):
    """A limit of the owner is reached; it ends by itself."""

    code = "rate_limit_exceeded"


class QuotaExceeded(TooMany):
    """The owner has as many bytes as allowed; that does not end by itself."""

    code = "quota_exceeded"


class Unavailable(DomainError):
    """A part that this needs gave no answer; nothing was changed, and asking again may help."""

    code = "unavailable"
