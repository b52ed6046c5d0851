"""Logs that a program can read: a line an event, with its time, level and ids, as JSON or as text.

An event is logged as `log.info("stage_claimed stage_id=%s epoch=%s", stage_id, epoch)`: its name and its fields are
taken from the template, so that no value can pretend to be a field. What other libraries log is a `message`. Whatever
comes from outside is written without control characters, so that nobody writes a line that we did not; secrets are
struck out, whoever logs them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

Format = Literal["text", "json"]

_TEMPLATE = re.compile(r"([a-z_]+)((?: [a-z_]+=%[sr])*)")
_FIELD = re.compile(r" ([a-z_]+)=%")
_SECRETS = re.compile(
    r"allo-[\w-]{20,}|sk-[\w-]{20,}|whsec_[\w+/=-]{8,}|(?<=[Bb]earer )[^\s'\"]+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
_LONGEST = 2000

_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default={})  # noqa: B039 - never changed in place


@contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Every line that is logged in the block, in this thread or task and those that it starts, has these ids."""
    token = _context.set({**_context.get(), **ids})
    try:
        yield
    finally:
        _context.reset(token)


def configure(form: Format = "text", level: str = "INFO") -> None:
    """Every logger of this process writes to its standard error, one line an event, and to nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, **_fields(record)}
        if record.exc_info:
            line["traceback"] = struck(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True, default=_plain)


class TextLines(logging.Formatter):
    """For people: time, level, logger, event, and `name=value` for each field. The lines of a traceback are set in."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        said = _printable(fields.pop("event", None) or fields.pop("message"))
        told = "".join(f" {name}={_word(value)}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname:<7} {record.name} {said}{told}"
        if record.exc_info:
            trace = struck(self.formatException(record.exc_info)).split("\n")
            line += "".join(f"\n    | {_printable(part)}" for part in trace)
        return line


def struck(text: str) -> str:
    """The text with whatever looks like a key or a password struck out."""
    return _SECRETS.sub("***", text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What happened and what is known of it: ids that were bound, and the fields of the event."""
    ids = {name: _plain(value) for name, value in _context.get().items()}
    template = _TEMPLATE.fullmatch(record.msg) if isinstance(record.msg, str) else None
    if template is None:
        return {"message": struck(record.getMessage()[:_LONGEST]), **ids}
    values = record.args if isinstance(record.args, tuple) else ()
    own = dict(zip(_FIELD.findall(template[2]), map(_plain, values), strict=False))
    return {"event": template[1], **ids, **own}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return struck(str(value)[:_LONGEST] if isinstance(value, str) else repr(value)[:_LONGEST])


def _word(value: Any) -> str:
    """A value as text: in quotes where it would not be one word."""
    text = str(value)
    return text if re.fullmatch(r"[\w.:/+@{}*-]+", text, re.ASCII) else json.dumps(text)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
