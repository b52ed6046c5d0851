"""What this package's source says of itself: which of it a stage runs, and the name of that. Free of torch.

A result bears the name of the code that computed it: of the stage's module and of all that this imports, however late,
without comments and docstrings. The text is read and nothing is imported. It is scanned and not parsed: that takes tens
of milliseconds, not half a second, and gives the same name in every version of Python, whose syntax trees differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "allo_engine"

_APART = re.compile(
    r'''\#[^\n]*
    | """[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*""" | \'\'\'[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*\'\'\'
    | "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*\'''',
    re.DOTALL | re.VERBOSE,
)
"""A comment or a string. Whether a string is raw makes no difference to where it ends."""

_LETTERS = "rRuU"
"""With which a string may begin and be no more than a string."""

_LINE_ENDS = re.compile(r"[ \t]*(?:#|\n|\Z)")
_BLANK = re.compile(r"[ \t]*\n(?:[ \t]*\n)*")
_NAMED = re.compile(rf"\b{PACKAGE}(?:\.\w+)*")
_IMPORTED = re.compile(rf"^[ \t]*from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(?:\(([^)]*)\)|([^\n]*))", re.MULTILINE)


@dataclass(frozen=True)
class Module:
    """One file of source. `sha256` is that of its code, `names` what it may import: every name in it that looks like a
    module of ours, so that one which stands in a string, for importlib or another interpreter, counts too."""

    sha256: str
    names: frozenset[str]

    @classmethod
    def read(cls, text: str) -> Module:
        """Whatever is not told apart for certain is taken for code."""
        code, strings = split(text)
        named = [*_NAMED.findall(code), *(name for string in strings for name in _NAMED.findall(string))]
        for package, *listed in _IMPORTED.findall(code):
            named += [f"{package}.{name}" for names in listed for name in re.findall(r"\w+", names)]
        return cls(hashlib.sha256(json.dumps([code, strings]).encode()).hexdigest(), frozenset(named))


def split(text: str) -> tuple[str, list[str]]:
    """The code without comments, docstrings and blank lines, each string of it as a quotation mark; and the strings."""
    code, strings, at = list[str](), list[str](), 0
    for start, end, kept in _apart(text):
        code.append(text[at:start])
        if kept:
            code.append('"')
            strings.append(text[start:end])
        at = end
    return _BLANK.sub("\n", "".join([*code, text[at:]])).strip(), strings


def asides(text: str) -> Iterator[tuple[int, int]]:
    """Where each thing begins and ends that does nothing: a comment, or a string that is a statement, which is all that
    a docstring is."""
    return ((start, end) for start, end, kept in _apart(text) if not kept)


def _apart(text: str) -> Iterator[tuple[int, int, bool]]:
    """Where each comment and string begins and ends, and whether it is one that does anything."""
    depth = at = 0
    for found in _APART.finditer(text):
        start, end = found.span()
        code = text[at:start]
        depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        if depth == 0 and _is_statement(text, start, end):
            yield len(text[:start].rstrip(_LETTERS)), end, False
        else:
            yield start, end, text[start] != "#"
        at = end


def _is_statement(text: str, start: int, end: int) -> bool:
    line = text.rfind("\n", 0, start) + 1
    goes_on = text.endswith("\\\n", 0, line)
    return not goes_on and text[line:start].strip(f" \t{_LETTERS}") == "" and _LINE_ENDS.match(text, end) is not None


class Source:
    """The files of the package in a folder, each read once."""

    def __init__(self, root: Path) -> None:
        self._files = {_name(path.relative_to(root)): path for path in root.rglob("*.py")}
        self._modules = dict[str, Module]()

    def stage_code(self, stage: str) -> str:
        """sha256 of the code that a stage runs. No two stages share one."""
        found = [(name, self._module(name).sha256) for name in sorted(self.closure(stage))]
        return hashlib.sha256(json.dumps([stage, found]).encode()).hexdigest()

    def closure(self, stage: str) -> frozenset[str]:
        """The modules that running a stage may load: more than it does load, never fewer."""
        reached, ahead = set[str](), {f"{PACKAGE}.__main__", f"{PACKAGE}.stages.{stage}"}
        while ahead:
            reached |= ahead
            ahead = {near for name in ahead for near in (name.rpartition(".")[0], *self._module(name).names)}
            ahead = (ahead & self._files.keys()) - reached
        return frozenset(reached)

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            self._modules[name] = Module.read(self._files[name].read_text(encoding="utf-8"))
        return self._modules[name]


def _name(path: Path) -> str:
    """Of the module in a file of the package."""
    parts = path.parts[:-1] if path.name == "__init__.py" else path.with_suffix("").parts
    return ".".join([PACKAGE, *parts])


ROOT = Path(__file__).parent


@cache
def stage_code(stage: str) -> str:
    """sha256 of the code that a stage runs here: results of other code are never taken for results of this one, and
    those of this one last as long as it does."""
    return _source().stage_code(stage)


@cache
def _source() -> Source:
    return Source(ROOT)


class Files:
    """A package's bytes, but those of what estimates or exports, which changes no result. A file is read again only
    where the file system says that it may be another."""

    def __init__(self, root: Path, settled: int = 2 * 10**9) -> None:
        """`settled` ns after a change of a file the next has other times, however coarse its file system's are."""
        self._root, self._settled = str(root), settled
        self._read = dict[str, tuple[tuple[int, ...], str]]()

    def version(self) -> str:
        """sha256 of all of it. Raises FileNotFoundError where some of it goes away meanwhile."""
        found = {entry.path[len(self._root) :]: entry for entry in _entries(self._root)}
        read = {path: self._sha256(entry) for path, entry in found.items() if not _WITHOUT_EFFECT.match(path)}
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()

    def _sha256(self, entry: os.DirEntry[str]) -> str:
        now, found = time.time_ns(), entry.stat()
        times = found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino  # nobody can set the first back
        known = self._read.get(entry.path)
        if known and known[0] == times:
            return known[1]
        sha256 = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
        if found.st_ctime_ns < now - self._settled:
            self._read[entry.path] = times, sha256
        return sha256


_WITHOUT_EFFECT = re.compile(r"/(estimate|exports)/|/needs\.py$")


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)
            elif entry.name.endswith(".py"):
                yield entry


@cache
def _files() -> Files:
    return Files(ROOT)


@cache
def code_version() -> str:
    """sha256 of this package's every byte that counts, as this process first found it."""
    return _files().version()


def replaced(since: str = "") -> bool:
    """Whether the package's files are others than those of a version, or than this process first found: what is started
    from here would run other code than is known of."""
    try:
        return _files().version() != (since or code_version())
    except FileNotFoundError:  # they are being replaced
        return True
