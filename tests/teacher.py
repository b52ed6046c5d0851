"""A teacher for the tests: a real HTTP server on this machine that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answering = Callable[[str, int], tuple[int, Any]]
"""From a question, and how often it was asked before, to (status, the answer's text or the whole body)."""


class Teacher(ThreadingHTTPServer):
    """Answers as `answering` says; `questions` and `headers` are those of every request, in order."""

    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answering = answering
        self.questions: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Teacher)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        (message,) = body["messages"]
        with server.lock:
            before = server.questions.count(message["content"])
            server.questions.append(message["content"])
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
        status, answer = server.answering(message["content"], before)
        if self.path != "/v1/chat/completions":
            status = 404
        if isinstance(answer, str):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            answer = {"id": "1", "model": body["model"], "choices": [choice], "usage": {"total_tokens": 7}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def teacher(answering: Answering) -> Iterator[Teacher]:
    server = Teacher(answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
