"""TLS before a server that speaks none: certificates made on the spot, and a port that leads to the server's socket.

The servers that come as packages are built without TLS, so that it ends in a relay before them, as it does in many
installations."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.chaos.relay import Relay

_ASKED_FOR_TLS = bytes.fromhex("0000000804d2162f")
"""How a client of PostgreSQL asks for TLS: a length of 8, and the code 80877103 (its manual, SSLRequest)."""


@dataclass(frozen=True)
class Certificates:
    """`authority`: the file of who signed; `server`: of the server's certificate, its key in it."""

    authority: Path
    server: Path

    def context(self) -> ssl.SSLContext:
        """What the server speaks."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server)
        return context


def make_certificates(folder: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> Certificates:
    """An authority of its own, and a server at these addresses."""
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = f"authority {secrets.token_hex(4)}"
    authority = _builder(name, name, ours).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)) for address in addresses])
    server = _builder(name, "server", theirs).add_extension(names, critical=False)
    signed = [
        builder.sign(ours, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) for builder in (authority, server)
    ]
    key = theirs.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = Certificates(folder / "authority.pem", folder / "server.pem")
    made.authority.write_bytes(signed[0])
    made.server.write_bytes(signed[1] + key)
    return made


def _builder(issuer: str, subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(_name(issuer))
        .subject_name(_name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class TlsRelay(Relay):
    """Ends TLS before a server's unix socket. A client of PostgreSQL asks for it first, `asked`, and is refused
    without."""

    def __init__(self, address: str, socket: Path, context: ssl.SSLContext, asked: bool = False) -> None:
        self._context, self._asked = context, asked
        super().__init__(address, socket)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._asked:
                if await reader.readexactly(8) != _ASKED_FOR_TLS:
                    raise ConnectionError
                writer.write(b"S")
            await writer.start_tls(self._context)
        except (OSError, asyncio.IncompleteReadError):  # of which the errors of TLS are some
            writer.transport.abort()
            return
        await super().serve(reader, writer)
