"""A line's bytes to a JSON object, strictly: what two readers might read in two ways is refused."""

from __future__ import annotations

import json
from typing import Any

from jiter import from_json

from service.datasets.checks import kind


class BadLine(Exception):
    """A line that is no JSON object of ours, or a file that cannot be read on."""

    def __init__(self, wrong: str, right: str, field: str | None = None) -> None:
        super().__init__(wrong, right, field)
        self.wrong, self.right, self.field = wrong, right, field


class TooMuch(BadLine):
    """A file that is more, once it is read, than the service takes."""


RIGHT = "one JSON object a line"


def parse(line: bytes, max_line_bytes: int) -> dict[str, Any]:
    """The object on a line. Raises BadLine, which says at which character.

    jiter is twice as fast as json and refuses at least as much; what it refuses json reads again, for the reason.
    """
    if len(line) > max_line_bytes and len(line.removesuffix(b"\n").removesuffix(b"\r")) > max_line_bytes:
        raise BadLine(f"is longer than {max_line_bytes} bytes", "a shorter line, or a larger ALLO_MAX_LINE_BYTES")
    try:
        row = from_json(line, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError:
        row = _slowly(line.removesuffix(b"\n"))
    if not isinstance(row, dict):
        raise BadLine(f"is {kind(row)}", RIGHT)
    return row


def _slowly(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_strict, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadLine(f"is not UTF-8 at its byte {error.start + 1}", "UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"is not JSON at its character {error.pos + 1}: {error.msg}", RIGHT) from None
    except RecursionError:
        raise BadLine("is nested too deeply", RIGHT) from None
    except ValueError:  # a number of more digits than Python reads
        raise BadLine("holds a number that is too long", "numbers of fewer digits, or texts") from None


def _strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Refused are a key that comes twice, because readers disagree on which one counts, and half a surrogate
    pair, which UTF-8 cannot hold."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadLine("is given twice", "each field once", _printable(key))
        if _is_broken(key) or _is_broken(value):
            right = r"whole characters: \ud83d\ude00 and not \ud83d alone"
            raise BadLine("holds half a surrogate pair", right, _printable(key))
        found[key] = value
    return found


def _is_broken(value: Any) -> bool:
    """Whether a text, or one in a list, cannot be written. Objects were looked at when they were made."""
    if isinstance(value, list):
        return any(map(_is_broken, value))
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _no_constant(name: str) -> Any:
    raise BadLine(f"holds {name}, which is not JSON", "a finite number, null, or a text")


def _printable(key: str) -> str:
    return key[:60].encode("ascii", "backslashreplace").decode()
