"""What the folder of a model that somebody registers may hold.

Weights as safetensors, configuration, a tokenizer; nothing that runs code, and nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from service.jobs.clean import clean_text
from service.jobs.errors import InvalidRequest

KNOWN = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
}
"""The files of a model beside its weights. Others in the folder are left where they are."""

INDEX = "model.safetensors.index.json"

TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
"""One of these a tokenizer has."""

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")


def checked(folder: Path) -> list[Path]:
    """The files to take. Raises InvalidRequest, saying what to change."""
    if not folder.is_dir():
        raise _refused(f"{folder} is no folder.")
    found = {path.name: path for path in folder.iterdir()}
    weights = [name for name in found if name.endswith(".safetensors")]
    if "config.json" not in found or not weights:
        pickled = " (pickled weights are not taken: convert them first)" if _pickles(found) else ""
        raise _refused(f"{folder} must hold config.json and *.safetensors{pickled}.")
    if not TOKENIZERS & set(found):
        raise _refused(f"{folder} holds no tokenizer: put its {', '.join(sorted(TOKENIZERS))} there, as it has them.")
    taken = [found[name] for name in sorted((KNOWN & set(found)) | set(weights))]
    for path in taken:
        _check_inside(path, folder)
    for name in KNOWN & set(found):
        if name.endswith(".json"):
            _check_json(found[name])
    if INDEX in found:
        _check_index(found[INDEX], set(weights))
    for name in weights:
        _check_weights(found[name])
    return taken


def licence_of(folder: Path) -> str | None:
    """How a model is licensed, as far as its folder says: the card's own word for it, that of the configuration, or
    the first line of the licence."""
    for text in (*_of_the_card(folder), *_of_the_config(folder), *_of_the_text(folder)):
        line = " ".join(clean_text(text).split())
        if line:
            return line[:100]
    return None


def _of_the_card(folder: Path) -> Iterator[str]:
    front = re.match(r"---\s*\n(.*?)\n---", _beginning(folder / "README.md"), re.DOTALL)
    for name in ("license_name", "license"):
        found = re.search(rf"^{name}:[ \t]*(\S.*)$", front[1], re.MULTILINE) if front else None
        if found and found[1].strip() != "other":
            yield found[1].strip(" \"'")


def _of_the_config(folder: Path) -> Iterator[str]:
    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("license")
    if isinstance(named, str):
        yield named


def _of_the_text(folder: Path) -> Iterator[str]:
    for name in LICENCES:
        yield from _beginning(folder / name).strip().splitlines()[:1]


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(2**16).decode(errors="replace")


def _pickles(names: Collection[str]) -> bool:
    return any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names)


def _check_inside(path: Path, folder: Path) -> None:
    """A file of the folder itself, or, in a snapshot of the Hub's cache, one of the blobs beside the snapshots."""
    roots = [folder.resolve(), *_blobs_of(folder.resolve())]
    if not any(path.resolve().is_relative_to(root) for root in roots) or not path.is_file():
        raise _refused(f"{path.name} leads out of the folder, or is no file: put the file itself there.")


def _blobs_of(snapshot: Path) -> list[Path]:
    """models--acme--tiny/snapshots/<commit> → models--acme--tiny/blobs."""
    repository = snapshot.parent.parent
    cached = snapshot.parent.name == "snapshots" and repository.name.startswith("models--")
    return [repository / "blobs"] if cached and (repository / "blobs").is_dir() else []


def _check_json(path: Path) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _refused(f"{path.name} is not JSON.") from None
    if path.name.endswith("config.json") and "auto_map" in _keys(value):
        raise _refused(f"{path.name} has auto_map: models that bring their own code are not taken.")
    if path.name == "config.json" and not isinstance(value, dict):
        raise _refused("config.json must hold an object.")


def _keys(value: Any) -> set[str]:
    """Of every object, however deep it stands."""
    found: set[str] = set()
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= part.keys()
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
    return found


def _check_index(path: Path, weights: set[str]) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) and name in weights for name in shards.values()):
        raise _refused(f"{INDEX} must map every weight to a safetensors file of this folder.")


def _check_weights(path: Path) -> None:
    """A safetensors file says how long it is and where its tensors lie: one that was cut short, is something else, or
    whose tensors overlap, is found here."""
    from safetensors import SafetensorError, safe_open  # here: numpy comes with it

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise _refused(f"{path.name} is not a whole safetensors file: {error}.") from None


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, "path", "invalid_model")
