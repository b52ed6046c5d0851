"""Chat templates, rendered in a process of their own: they come with models, and may loop or grow without end.

    python -m allo_engine.model.templating SECONDS    answers a line of JSON with a line of JSON, until its input ends

A request is {"template"?, "messages", "tools", "add_generation_prompt", "arguments"}, or {"template"?, "names": true}
for the names that a template wants; one that leaves out "template" is about the last. The environment is the one that
transformers renders in (transformers/utils/chat_template_utils.py), which a test holds it to; jinja alone is imported,
so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 2**30
"""Address space of the process, which takes a tenth of it by itself."""

CPU_SECONDS = 10
"""SECONDS, of one rendering. Most take less than a millisecond."""

LONGEST = 2**26
"""Characters of a rendered conversation."""


def main(seconds: int) -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever asks is asked to stop, and ends this by its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answered = _Answers()
    for line in sys.stdin:
        _allow(seconds)
        sys.stdout.write(answered(line) + "\n")
        sys.stdout.flush()


def _allow(seconds: int) -> None:
    """The kernel ends this process `seconds` of CPU from now."""
    soft, (_, hard) = int(time.process_time()) + seconds + 1, resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


class _Answers:
    """Requests to answers; a template is compiled once."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._source, self._template = "", Template("")

    def __call__(self, line: str) -> str:
        try:
            return json.dumps(self._answered(json.loads(line)))
        except MemoryError:
            return json.dumps({"error": f"it takes more than {MEMORY_BYTES >> 20} MB"})
        except RecursionError:
            return json.dumps({"error": "it calls itself without end"})
        except Exception as error:  # whatever a template does
            return json.dumps({"error": f"{error}"[:500] or type(error).__name__})

    def _answered(self, request: dict[str, Any]) -> dict[str, Any]:
        if "template" in request:
            self._source = request.pop("template")
            self._template = self._environment.from_string(self._source)
        if request.pop("names", False):
            return {"names": sorted(meta.find_undeclared_variables(self._environment.parse(self._source)))}
        text = self._template.render(**request.pop("arguments"), **request)
        if len(text) > LONGEST:
            raise TemplateError(f"it writes more than {LONGEST} characters")
        return {"text": text}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


class _Generation(Extension):
    """transformers' own tag {% generation %}, which marks what the assistant says: here its content alone counts."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


if __name__ == "__main__":
    main(int(sys.argv[1]))
