"""A random sample of an uploaded file's lines, as a file of its own: the stages' readers read it like the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from allo_engine.data.reading import UPLOADED
from allo_engine.pipeline import Format

LINES = 500
"""Lines of a file that are looked at; what they show is scaled up to the file."""


@dataclass(frozen=True)
class Excerpt:
    """A folder like that of an uploaded file with some of a file's lines, and how many lines the file has for each."""

    folder: Path
    scale: float
    format: Format


def excerpt_of(file: Path, folder: Path, seed: int) -> Excerpt:
    """Write a random sample of a file's lines into `folder`, in their order. `file` may be the folder of data.jsonl.

    The file is read once and never held (reservoir sampling). Raises ValueError where it has no lines or no JSON.
    """
    path = file / UPLOADED if file.is_dir() else file
    random = Random(seed)  # noqa: S311 - a draw, not a secret
    kept: dict[int, tuple[int, str]] = {}  # place in the sample → (number of the line, line)
    count = 0
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        for line in filter(str.strip, stream):
            place = count if count < LINES else random.randrange(count + 1)
            if place < LINES:
                kept[place] = (count, line)
            count += 1
    if not count:
        raise ValueError(f"{path} has no lines")
    lines = [line for _, line in sorted(kept.values())]
    folder.mkdir(parents=True)
    (folder / UPLOADED).write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
    return Excerpt(folder, count / len(lines), format_of(json.loads(lines[0])))


def format_of(line: Mapping[str, Any]) -> Format:
    """What a file holds, by its first line."""
    named = {name for name, value in line.items() if value is not None}
    if "correction" in named:
        return "corrections"
    if "messages" in named:
        return "chats"
    return "preferences" if named & {"prompt", "preferred_output"} else "problems"
