"""A wire between a browser and the service, to be cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wire:
    """Passes bytes on, both ways. `address` is what a browser is to connect to."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self.address = "http://{}:{}".format(*listener.getsockname())
        self._listener, self._target, self._whole = listener, target, True
        self._ends: list[socket.socket] = []

    def cut(self) -> None:
        """Ends whatever is under way; nothing passes until it is mended."""
        self._whole = False
        for end in self._ends:
            _close(end)
        self._ends.clear()

    def mend(self) -> None:
        self._whole = True

    def carry(self) -> None:
        """Until the listener is closed."""
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._whole:
                    _close(near)
                    continue
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    _close(source)
    _close(sink)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def wire(address: str) -> Iterator[Wire]:
    """A wire to the service at this address."""
    host, _, port = address.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    made = Wire(listener, (host, int(port)))
    carrier = threading.Thread(target=made.carry)
    carrier.start()
    yield made
    made.cut()
    _close(listener)
    carrier.join()
