"""A second host on this machine: a network namespace with an address and a name of its own, where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class SecondHost:
    """`here` is the address at which the second host finds this one; `within` begins a command line that runs there."""

    here: str
    within: tuple[str, ...]


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """A namespace behind a pair of virtual interfaces; without the right to make one, this host by another address."""
    name, net = f"allo{os.getpid()}", f"10.213.{os.getpid() % 250}"
    ip = shutil.which("ip")
    if ip is None or not _ran(ip, "netns", "add", name):
        yield SecondHost("127.0.0.2", ())
        return
    try:
        ours, theirs = f"{name}a"[-15:], f"{name}b"[-15:]
        inside = (ip, "-n", name)
        for command in (
            (ip, "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name),
            (ip, "addr", "add", f"{net}.1/30", "dev", ours),
            (ip, "link", "set", ours, "up"),
            (*inside, "addr", "add", f"{net}.2/30", "dev", theirs),
            (*inside, "link", "set", theirs, "up"),
            (*inside, "link", "set", "lo", "up"),
        ):
            subprocess.run(command, check=True)
        named = ("unshare", "--uts", "sh", "-c", 'hostname second && exec "$@"', "sh")
        yield SecondHost(f"{net}.1", (ip, "netns", "exec", name, *named))
    finally:
        subprocess.run([ip, "netns", "del", name], check=True)  # its interfaces go with it


def _ran(*command: str) -> bool:
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
