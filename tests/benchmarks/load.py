"""Keep-alive clients in one thread: each sends its request again as soon as the answer is there."""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass
from statistics import median


@dataclass
class _Client:
    connection: socket.socket
    sent: float = 0.0
    received: bytes = b""

    def send(self, request: bytes) -> None:
        self.connection.sendall(request)
        self.sent, self.received = time.perf_counter(), b""

    def answered(self) -> bool:
        """Whether the whole answer has come; it must be a 200 with a Content-Length."""
        self.received += self.connection.recv(2**20)
        head, ended, body = self.received.partition(b"\r\n\r\n")
        if not ended:
            return False
        assert head.startswith(b"HTTP/1.1 200"), self.received[:500]
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return len(body) >= int(length.partition(b":")[2])


def drive(port: int, path: str, clients: int, seconds: float, key: str = "") -> dict[str, float]:
    """Requests a second, and the median and 99th percentile of their latencies in ms, from `clients` connections."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(connection)
            selector.register(connection, selectors.EVENT_READ, client)
            client.send(request)
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            for ready, _ in selector.select(1.0):
                client = ready.data
                if client.answered():
                    latencies.append(time.perf_counter() - client.sent)
                    client.send(request)
        for ready in list(selector.get_map().values()):
            ready.data.connection.close()
    ordered = sorted(latencies)
    p99 = ordered[int(len(ordered) * 0.99)] * 1000
    return {"per_second": len(ordered) / (now - began), "median_ms": median(ordered) * 1000, "p99_ms": p99}
