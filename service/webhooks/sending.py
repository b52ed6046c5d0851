"""One delivery over the wire: signed, without redirects, to an allowed address, in bounded time.

Headers are those of the Standard Webhooks specification 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import httpcore

from service.webhooks.addresses import Unreachable, allowed_addresses
from service.webhooks.signing import signature

SECONDS = 15.0
"""How long a delivery may take in all, from the look for the address to the status line."""


class Undelivered(Exception):
    """Nothing answered; the message says why, for the delivery log."""


def send(
    url: str,
    signing: Sequence[str],
    message_id: str,
    timestamp: int,
    body: bytes,
    private: bool,
    seconds: float = SECONDS,
) -> int:
    """The status that `url` answered with; all secrets of `signing` sign. Raises Undelivered where nothing answered in
    so many seconds."""
    headers: dict[bytes | str, bytes | str] = {
        "content-type": "application/json",
        "user-agent": "allo-webhooks",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(secret, message_id, timestamp, body) for secret in signing),
    }
    backend = _Backend(private, time.monotonic() + seconds)
    try:
        with (
            httpcore.ConnectionPool(ssl_context=_context(), network_backend=backend) as pool,
            pool.stream("POST", url, headers=headers, content=body) as response,
        ):
            return int(response.status)  # the body is nobody's business here, and may be endless
    except Unreachable as error:
        raise Undelivered(str(error)) from None
    except (httpcore.TimeoutException, TimeoutError):
        raise Undelivered(f"no answer within {seconds:.0f} s") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        raise Undelivered(f"{type(error).__name__}: {error}"[:500]) from None


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Backend(httpcore.SyncBackend):
    """Connects to allowed addresses alone, until `ends` on the monotonic clock."""

    def __init__(self, private: bool, ends: float) -> None:
        self._private, self._ends = private, ends

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        *others, last = allowed_addresses(host, port, self._private)
        for address in others:
            try:
                return self._connected(address, port)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connected(last, port)

    def _connected(self, address: str, port: int) -> httpcore.NetworkStream:
        return _Bounded(super().connect_tcp(address, port, _left(self._ends)), self._ends)


class _Bounded(httpcore.NetworkStream):
    """A stream whose every wait ends at the same moment: a receiver that sends a byte now and then holds nobody."""

    def __init__(self, stream: httpcore.NetworkStream, ends: float) -> None:
        self._stream, self._ends = stream, ends

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._ends))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._ends))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, _left(self._ends)), self._ends)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(ends: float) -> float:
    seconds = ends - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout
    return seconds
