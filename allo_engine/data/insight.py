"""What a training file is to a model: its lengths in tokens, its first lines as they are trained on, and what it has
in common with a validation file.

    python -m allo_engine.data MODEL FILE [VALIDATION]     prints a JSON object, or {"refused": "why"}

MODEL is a folder with a tokenizer, the files are JSON lines of our formats. It reads them with the stages' own readers,
within limits of CPU time and memory, and ends when its input does.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from allo_engine.checkpoints.folder import context_length
from allo_engine.data.examples import examples_of, preference_of
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import as_problem, read_lines
from allo_engine.report import StageError

Example = tuple[str, list[int], list[int]]
"""What a response is, the ids before it, and its own."""

MOST_LINES, MOST_BYTES = 20_000, 2**24
"""Lines that are tokenised, evenly spread over a larger file."""

MOST_SECONDS = 60
"""CPU time after which what was tokenised by then must do. The lines are taken in no order."""

MOST_DIGESTS = 500_000
"""Lines of a validation file that are remembered; of a larger one a sample, of which the whole is told."""

MOST_BARS = 32
"""Of a histogram."""

SHOWN_LINES, SHOWN_SEQUENCES, SHOWN_CHARACTERS = 3, 4, 4000

MEMORY_BYTES, CPU_SECONDS = 4 * 2**30, 180


def insight(model: Path, file: Path, validation: Path | None) -> dict[str, Any]:
    """Lengths, a preview and the overlap. Raises StageError where the model's template cannot write a line."""
    encoder, longest = Encoder.of(model), context_length(model)
    return {
        "tokens": _tokens(file, encoder, longest),
        "preview": list(_preview(file, encoder)),
        "overlap": None if validation is None else _overlap(file, validation),
    }


def _examples(line: Mapping[str, Any], encoder: Encoder) -> Iterator[Example]:
    """What is trained on of a line."""
    if line.get("correction") is not None:
        prompt = encoder.prompt(as_problem(line).problem)
        yield from ((name, prompt, encoder.response(line[name])) for name in ("prediction", "correction"))
    elif line.get("rejected") is not None or line.get("preferred_output") is not None:
        prompt, chosen, rejected = preference_of(line, encoder)
        yield from (("chosen", prompt, chosen), ("rejected", prompt, rejected))
    else:
        yield from (("response", prompt, response) for prompt, response in examples_of(line, encoder))


# --- lengths


def _tokens(file: Path, encoder: Encoder, longest: int) -> dict[str, Any]:
    """How many tokens prompts, responses and both together have."""
    lines, total = _spread(file)
    began, lengths, measured = time.process_time(), [], 0
    for line in lines:
        lengths += [(len(prompt), len(response)) for _, prompt, response in _examples(line, encoder)]
        measured += 1
        if time.process_time() - began > MOST_SECONDS:
            break
    whole = [prompt + response for prompt, response in lengths]
    return {
        "lines": total,
        "lines_measured": measured,
        "sequences": len(lengths),
        "prompt": _spans([prompt for prompt, _ in lengths]),
        "response": _spans([response for _, response in lengths]),
        "total": _spans(whole),
        "histogram": _histogram(whole),
        "model_length": longest,
        "longer_than_model": sum(length > longest for length in whole),
    }


def _spread(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines spread evenly over a file, shuffled, and how many it has."""
    total = sum(1 for _ in read_lines(file))
    step = max(-(-total // MOST_LINES), -(-file.stat().st_size // MOST_BYTES), 1)
    lines = [line for place, line in enumerate(read_lines(file)) if place % step == 0]
    Random(0).shuffle(lines)  # noqa: S311 - a draw, not a secret
    return lines, total


def _spans(lengths: Sequence[int]) -> dict[str, int] | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    at = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}


def _histogram(lengths: Sequence[int]) -> dict[str, Any] | None:
    """`counts[i]` sequences have i·width to (i + 1)·width − 1 tokens."""
    if not lengths:
        return None
    width = max(lengths) // MOST_BARS + 1
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return {"width": width, "counts": counts}


# --- preview


def _preview(file: Path, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """The first lines as the model is given them, and which tokens of them it learns."""
    for number, line in zip(range(1, SHOWN_LINES + 1), read_lines(file), strict=False):
        found = list(_examples(line, encoder))[:SHOWN_SEQUENCES]
        yield {"line": number, "sequences": [_shown(*example, encoder) for example in found]}


def _shown(name: str, prompt: list[int], response: list[int], encoder: Encoder) -> dict[str, Any]:
    return {
        "of": name,
        "tokens": len(prompt) + len(response),
        "trained_tokens": len(response),
        "segments": [
            {"text": _clipped(encoder.tokenizer.decode(prompt)), "trained": False},
            {"text": _clipped(encoder.tokenizer.decode(response)), "trained": True},
        ],
    }


def _clipped(text: str | list[str]) -> str:
    assert isinstance(text, str)
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}"


# --- overlap


def _overlap(file: Path, validation: Path) -> dict[str, int]:
    """How many lines of the validation file the training file has too, and how many of their prompts."""
    mask, lines, prompts = 0, dict[int, int](), dict[int, int]()
    for line in read_lines(validation):
        for digests, value in ((lines, line), (prompts, _prompt(line))):
            digest = _digest(value)
            if not digest & mask:
                digests[digest] = digests.get(digest, 0) + 1
        while max(len(lines), len(prompts)) > MOST_DIGESTS:
            mask = 2 * mask + 1
            lines, prompts = ({d: n for d, n in digests.items() if not d & mask} for digests in (lines, prompts))
    seen_lines, seen_prompts = 0, 0
    for line in read_lines(file):
        seen_lines += lines.pop(_digest(line), 0)
        seen_prompts += prompts.pop(_digest(_prompt(line)), 0)
    return {"lines": seen_lines * (mask + 1), "prompts": seen_prompts * (mask + 1)}


def _digest(value: Any) -> int:
    content = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _prompt(line: Mapping[str, Any]) -> Any:
    """What a line asks, however its format names it."""
    if line.get("messages") is not None:
        answers = [place for place, message in enumerate(line["messages"]) if message["role"] == "assistant"]
        asked = line["messages"][: answers[-1]]
    elif line.get("preferred_output") is not None:
        asked = line["input"]["messages"]
    else:
        asked = next(line[name] for name in ("prompt", "problem", "question", "input") if line.get(name) is not None)
    alone = isinstance(asked, list) and len(asked) == 1 and asked[0].get("role") == "user"
    return asked[0].get("content") if alone else asked


def main(arguments: Sequence[str]) -> None:
    """Prints what was found."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    threading.Thread(target=_end_with_input, daemon=True).start()
    model, file, *validation = map(Path, arguments)
    try:
        found = insight(model, file, validation[0] if validation else None)
    except StageError as error:
        found = {"refused": error.message}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _end_with_input() -> None:
    """Nobody is left to tell once whoever asked is gone."""
    while os.read(sys.stdin.fileno(), 2**16):
        pass
    os._exit(1)
