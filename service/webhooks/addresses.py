"""Where a webhook may go: to the public internet by TLS, and into private networks only where the operator says so.

A name is resolved where the connection is made, and the very address that was looked at is connected to: a name that
turns to a private address after it was checked (DNS rebinding) reaches nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from service.jobs.errors import InvalidRequest

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 names of IPv4 addresses, behind a NAT64 (RFC 6052)."""

_UNICAST = ipaddress.ip_network("2000::/3")
"""All that was ever given out of IPv6 for the internet (RFC 4291, 2.4)."""

_ASSIGNED = ipaddress.ip_network("192.0.0.0/24")
"""For protocols, and for what clouds tell their machines; of the internet nothing but anycast relays (RFC 6890)."""


_REFUSED = "webhook_url_refused"


class Unreachable(Exception):
    """An address that nothing may be sent to, or a name without one."""


def check_url(url: str, private: bool) -> None:
    """Raises InvalidRequest for what could never be delivered to; `private` allows private addresses, without TLS."""
    parts = _split(url)
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise InvalidRequest("A webhook's URL begins with https://.", "url", _REFUSED)
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        message = "A webhook's URL is https://host/path, without a user, a password or a fragment."
        raise InvalidRequest(message, "url", _REFUSED)
    try:
        allowed_addresses(parts.hostname, parts.port or 443, private)
    except Unreachable as error:
        raise InvalidRequest(f"Nothing can be delivered to this URL: {error}.", "url", _REFUSED) from None


def allowed_addresses(host: str, port: int, private: bool) -> list[str]:
    """The addresses of a host. Raises Unreachable where it has none, or one that is not public."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise Unreachable(f"the name {host!r} has no address") from None
    if not private and not all(_is_public(address) for address in found):
        raise Unreachable(f"{host!r} lies in a private network, which this service's operator does not allow")
    return sorted(found)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # it is looked at here alone
    except ValueError as error:
        raise InvalidRequest(f"This is no URL: {error}.", "url", _REFUSED) from None
    if not url.isascii() or not url.isprintable() or " " in url:
        message = "A URL has printable ASCII characters alone: write others as %XX or punycode."
        raise InvalidRequest(message, "url", _REFUSED)
    return parts


def _is_public(address: str) -> bool:
    """An IPv6 address that stands for an IPv4 address is what that is."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not found.is_multicast and found not in _ASSIGNED
    inner = found.ipv4_mapped or found.sixtofour
    if found in _TRANSLATED:
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if inner is not None:
        return _is_public(str(inner))
    return found in _UNICAST and found.is_global and found.teredo is None
