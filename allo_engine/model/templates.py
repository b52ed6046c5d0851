"""What a model's chat template writes, rendered by the process of templating.py. Free of torch."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from typing import Any

from allo_engine.model.templating import CPU_SECONDS, MEMORY_BYTES


class TemplateFault(Exception):
    """A chat template that cannot write a conversation, or not within the limits; the message says why."""


def rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    answering: bool,
    arguments: Mapping[str, Any],
) -> str:
    """A conversation as the template writes it, as transformers has it; up to where the assistant answers if it is
    `answering`. Raises TemplateFault."""
    request = {"messages": messages, "tools": tools, "add_generation_prompt": answering, "arguments": arguments}
    text = _renderer().ask(template, request)["text"]
    assert isinstance(text, str)
    return text


def names_in(template: str) -> set[str]:
    """The variables that a template reads and does not set. Raises TemplateFault."""
    return set(_renderer().ask(template, {"names": True})["names"])


class _Renderer:
    """The process, started when it is first asked, and again after it died of a template."""

    def __init__(self) -> None:
        self._owner, self._lock = os.getpid(), Lock()
        self._process: subprocess.Popen[str] | None = None
        self._template: str | None = None
        atexit.register(self._end)

    def ask(self, template: str, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer. Raises TemplateFault where that is an error, or the end of the process."""
        with self._lock:
            if self._process is None:
                self._start()
            if template != self._template:
                request = {"template": template, **request}
            try:
                line = self._exchange(json.dumps(request))
                if not line.endswith("\n"):
                    raise TemplateFault(f"it takes more than {CPU_SECONDS} s of CPU, or {MEMORY_BYTES >> 20} MB")
            except BaseException:  # an answer that nobody waited for must not be the next one's
                self._end()
                raise
            answer: dict[str, Any] = json.loads(line)
            self._template = None if "error" in answer else template  # it may not have been compiled
        if "error" in answer:
            raise TemplateFault(answer["error"])
        return answer

    def _start(self) -> None:
        self._template = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "allo_engine.model.templating", str(CPU_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _exchange(self, line: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        return ""

    def _end(self) -> None:
        if self._process is None or self._owner != os.getpid():  # in a fork it is its parent's
            return
        with suppress(BrokenPipeError), self._process:
            self._process.kill()
        self._process = None


def _renderer() -> _Renderer:
    """This process's own: a fork has no part in its parent's."""
    return _renderer_of(os.getpid())


@lru_cache(maxsize=1)
def _renderer_of(_process: int) -> _Renderer:
    return _Renderer()
