"""More hosts on this machine: network namespaces, each with a name, an address and a link that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

HERE = "127.0.0.1"
IP = shutil.which("ip") or "ip"


@dataclass(frozen=True)
class Host:
    """`within` begins a command line that runs there; where no namespace may be made, it is empty, and runs here.

    `link` is this side's end of the cable to it.
    """

    name: str
    within: tuple[str, ...] = ()
    namespace: str = ""
    link: str = ""

    def cut(self) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        _ip("link", "set", self.link, "up")

    def die(self) -> None:
        """Kill every process that it has, at once."""
        while pids := _ip("netns", "pids", self.namespace).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@dataclass
class Network:
    """This machine, as other hosts see it: at `address`, the same for all."""

    address: str
    hosts: dict[str, Host]


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """A namespace a host, each behind a pair of virtual interfaces; hosts that are this machine, where it may make
    none."""
    base = f"10.213.{os.getpid() % 250}"
    with ExitStack() as made:
        hosts = {name: made.enter_context(_host(name, number, base)) for number, name in enumerate(names)}
        yield Network(f"{base}.1" if all(host.within for host in hosts.values()) else HERE, hosts)


@contextmanager
def _host(name: str, number: int, base: str) -> Iterator[Host]:
    """Its cable leads to an address of this machine's own; through that it finds the first."""
    namespace, near, far = (f"allo{os.getpid()}{kind}{number}" for kind in "nab")
    gateway, own = f"{base}.{4 * number + 1}", f"{base}.{4 * number + 2}"
    try:
        _ip("netns", "add", namespace)
    except (OSError, subprocess.CalledProcessError):
        yield Host(name)
        return
    inside = ("-n", namespace)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
        _ip("addr", "add", f"{gateway}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip(*inside, "addr", "add", f"{own}/30", "dev", far)
        _ip(*inside, "link", "set", far, "up")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "route", "add", "default", "via", gateway)
        named = ("unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh")
        yield Host(name, (IP, "netns", "exec", namespace, *named), namespace, near)
    finally:
        _ip("netns", "del", namespace)  # its interfaces go with it


def _ip(*command: str) -> str:
    return subprocess.run((IP, *command), capture_output=True, text=True, check=True).stdout
