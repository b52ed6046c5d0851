"""A broker's URL, as both of its clients read it, and what a failure to reach the broker means.

Celery (through kombu) and Redis' own client take the same URL, and read it differently: of `rediss://` without more,
one checks no certificate and the other does. What is given to each here makes them do the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

_SCHEMES = {"redis", "rediss", "redis+socket"}
_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_VERIFYING = ("required", "optional", "none")


def checked(url: str) -> str:
    """The URL, where both clients can read it. Raises ValueError, whose words never hold the password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("cannot be read as a URL: write special characters of a password as %XX") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"must begin with redis://, rediss:// (TLS) or redis+socket://, not with {parts.scheme:.20}:")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ValueError(f"has the option {unknown[0]:.40}; there are {', '.join(sorted(_OPTIONS))}")
    if options and parts.scheme != "rediss":
        raise ValueError("has options of TLS, and is no rediss:// URL")
    if options.get("ssl_cert_reqs", "required") not in _VERIFYING:
        raise ValueError(f"must have an ssl_cert_reqs of {', '.join(_VERIFYING)}")
    return url


def for_redis(url: str) -> str:
    """The URL as Redis' own client writes it: kombu says `redis+socket` for a unix socket."""
    return url.replace("redis+socket://", "unix://", 1)


def for_celery(url: str) -> str:
    """The URL as kombu must read it: without a word about certificates it would take any."""
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def told(error: BaseException) -> str:
    """What a client's failure to reach the broker means, and what to do about it. Knows no password."""
    causes = list(_causes(error))
    words = str(error)
    if refused := next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None):
        return (
            f"its certificate is not trusted ({refused.verify_message}): ALLO_BROKER_URL must have the host's name as "
            "the certificate does, and the file of whoever signed it, ?ssl_ca_certs=FILE, where the system has it not"
        )
    if any(isinstance(cause, FileNotFoundError) for cause in causes) and "unix" not in words:
        return "a file that ALLO_BROKER_URL names in ssl_ca_certs, ssl_certfile or ssl_keyfile is not there"
    if any(type(cause).__name__ == "AuthenticationError" for cause in causes):
        return f"it refuses the user or the password of ALLO_BROKER_URL ({words.partition(',')[0].rstrip('.')})"
    if any(isinstance(cause, ssl.SSLError) or "handshake" in str(cause) for cause in causes):
        return f"no TLS could be agreed on ({words}): a port without TLS is redis:// in ALLO_BROKER_URL"
    if "closed by server" in words:
        return f"{words.rstrip('.')}: a port with TLS is rediss:// in ALLO_BROKER_URL"
    return words


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
