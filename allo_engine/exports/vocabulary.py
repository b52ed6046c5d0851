"""A byte-level BPE tokenizer as GGUF has it: tokens, merges, and the name of what cuts text before BPE merges it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from allo_engine.report import StageError

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_SPLIT % r"\p{N}{1,3}": "llama-bpe", _SPLIT % r"\p{N}": "qwen2"}
"""The patterns by which text is cut, and the names that llama.cpp knows them by."""


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Writes a folder's tokenizer, filled up to the `size` of the embeddings. Raises StageError for another kind."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise _refused("it has no tokenizer.json")
    described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if described["model"]["type"] != "BPE":
        raise _refused(f"a byte-level BPE tokenizer is wanted, this one is {described['model']['type']}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(described))
    names: dict[int, str] = {place: token for token, place in tokenizer.get_vocab().items()}
    added: list[dict[str, Any]] = described.get("added_tokens", [])
    special = {int(token["id"]): bool(token["special"]) for token in added}
    tokens = [names.get(place, f"[PAD{place}]") for place in range(size)]
    writer.add_token_list(tokens)
    writer.add_token_types([_type(place, place in names, special) for place in range(size)])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    if not merges:
        raise _refused("its BPE merges nothing, and GGUF has no empty list")
    writer.add_token_merges(merges)
    _add_marks(writer, tokenizer)


def pre_tokenizer(described: dict[str, Any]) -> str:
    """The name of a tokenizer.json's pre-tokenizer. Raises StageError for one that has none here."""
    parts = list(_parts(described.get("pre_tokenizer") or {}))
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        name = PATTERNS.get(parts[0].get("pattern", {}).get("Regex", ""))
        if name:
            return name
    raise _refused(f"its pre-tokenizer ({', '.join(map(str, kinds)) or 'none'}) has no name that we know in GGUF")


def _parts(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if described.get("type") == "Sequence":
        for part in described["pretokenizers"]:
            yield from _parts(part)
    else:
        yield described


def _type(place: int, known: bool, special: dict[int, bool]) -> int:
    if not known:
        return int(gguf.TokenType.UNUSED)
    if place in special:
        return int(gguf.TokenType.CONTROL if special[place] else gguf.TokenType.USER_DEFINED)
    return int(gguf.TokenType.NORMAL)


def _add_marks(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    """What begins and ends texts, and the chat template."""
    for add, place in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if place is not None:
            add(place)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _refused(why: str) -> StageError:
    return StageError("refused", f"This tokenizer is not written as GGUF: {why}.")
