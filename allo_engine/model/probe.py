"""Whether a model can be trained, and whether on packed rows: found by trying, never by a list of names.

Of the architecture that a config.json describes a small model is made, in float32 on the CPU, with random weights: one
layer of each type, few tokens, short windows. A row that packs some sequences must give it the log-probabilities that
these have alone under transformers' own attention. What is recurrent or convolutional, counts places instead of
positions (ALiBi), or attends in ways that ours does not know, does not: it is trained one sequence a row. And what the
checkpoint stores must map onto the model's weights, whole: that is told from names and shapes (checkpoints/names.py).
Its tokenizer must be one that transformers reads, and its chat template write a conversation within limits.

    python -m allo_engine.model FOLDER     prints {"packs": …, "reason": …, "shape": {…}}, or {"refused": "why"}

The shape (model/shape.py; null where a size has no name that we know) is what the memory of its stages is told from.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from allo_engine.checkpoints.names import names_of, skeleton
from allo_engine.model.attention import NAME, attending
from allo_engine.model.sequences import build_row, singles
from allo_engine.model.shape import shape_of
from allo_engine.model.tokenizer import check_tokenizer
from allo_engine.report import StageError

TOLERANCE = 1e-4
"""Nats by which a packed log-probability may be another's, in float32."""

VOCABULARY, WINDOW, WIDTH, LAYERS = 64, 6, 64, 2
"""The small model's sizes: windows shorter than the probe's sequences, and layers where all are of one type."""

_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")


@dataclass(frozen=True)
class Verdict:
    """Whether rows may be packed; if not, why, in one sentence."""

    packs: bool
    reason: str = ""


def probe(folder: Path) -> Verdict:
    """What a model's folder can be trained by. Raises StageError "bad_model" where it cannot be trained at all."""
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in given:
        raise _refused("Its weights are quantised, and training would change rounded numbers: take the original.")
    if given.get("is_encoder_decoder"):
        raise _refused("It is an encoder-decoder: only causal language models are trained.")
    if not any(folder.glob("*.safetensors")):
        raise _refused("It has no *.safetensors: convert its weights first.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise _refused(f"transformers cannot read its config.json: {_line(error)}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refused(f"transformers has no causal language model of type {config.model_type!r}.")
    names_of(skeleton(folder), folder)
    return verdict(config)


def verdict(config: PreTrainedConfig) -> Verdict:
    """Whether rows of a model with this config may be packed."""
    return _verdict(config.__class__, json.dumps(config.to_dict(), sort_keys=True, default=str))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _verdict(kind: type[PreTrainedConfig], text: str) -> Verdict:
    try:
        with torch.random.fork_rng(devices=[]), _quiet(), torch.device("cpu"):
            return _tried(_small(kind, json.loads(text)))
    except Exception as error:  # whatever an architecture does not bear: alone it is right in any case
        return Verdict(False, f"A small model of its kind could not be tried on a packed row: {_line(error)}")


@torch.no_grad()
def _tried(model: PreTrainedModel) -> Verdict:
    if not model._can_set_attn_implementation():
        return Verdict(False, "Its attention cannot be replaced by one for packed rows.")
    prompts = [[5, 9, 11, 30, 7, 12, 8], [5, 9, 11, 6]]
    answers = [[[20, 21, 33, 41, 19, 3], [20, 21, 50, 51, 52, 53, 54, 55], [61, 1]], [[8, 15, 40, 40, 2], [9, 3]]]
    row = build_row([singles(key, prompt, answers[key]) for key, prompt in enumerate(prompts)])
    alone = [model(input_ids=row.ids[:, path], use_cache=False).logits[0] for path in row.sequences()]
    model.set_attn_implementation(NAME)
    with attending(row.ends, row.positions[0]):
        packed: Tensor = model(**row.arguments()).logits[0]
    furthest = max(
        float((packed[path].log_softmax(-1) - logits.log_softmax(-1)).abs().max())
        for path, logits in zip(row.sequences(), alone, strict=True)
    )
    if furthest <= TOLERANCE:
        return Verdict(True)
    return Verdict(
        False, f"On a packed row its log-probabilities are up to {furthest:.2g} nats from the sequences' own."
    )


def _small(kind: type[PreTrainedConfig], given: dict[str, Any]) -> PreTrainedModel:
    """A small model of a config's architecture whose every weight counts, under transformers' own attention."""
    config = kind.from_dict(_reduced(given))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for weight in model.parameters():
        if weight.dim() > 1:  # as drawn for training they are so small that nothing would be told apart
            weight.data.normal_(0, weight.shape[-1] ** -0.5)
    return model


def _reduced(given: dict[str, Any]) -> dict[str, Any]:
    """A config, or one of a model's parts, with fewer layers and tokens and shorter windows."""
    layers = next((given[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if given.get(key)), None)
    kept = _layers(given, layers) if isinstance(layers, int) else None
    found: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict):
            found[key] = _reduced(value) if key.endswith("_config") else value
        elif kept and isinstance(value, list) and len(value) == layers:
            found[key] = value[:kept]
        elif key in ("num_hidden_layers", "n_layer", "n_layers") and kept:
            found[key] = kept
        elif key == "vocab_size":
            found[key] = VOCABULARY
        elif key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            found[key] = None if value is None else 0
        elif key in _WINDOWS and isinstance(value, int):
            found[key] = min(value, WINDOW)
        elif key.endswith(_WIDTHS) and isinstance(value, int):
            found[key] = min(value, WIDTH)
        else:
            found[key] = value
    return found


def _layers(given: dict[str, Any], layers: int) -> int:
    """How many of the first layers hold every type of layer that a config lists."""
    listed = [value for value in given.values() if isinstance(value, list) and len(value) == layers]
    kinds = [[json.dumps(kind) for kind in kinds] for kinds in listed]
    enough = (next(n for n in range(1, layers + 1) if set(found[:n]) == set(found)) for found in kinds)
    return max([min(LAYERS, layers), *enough])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on a model that nobody will see."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:199] + "…"


def _refused(message: str) -> StageError:
    return StageError("bad_model", message)


def _shape(folder: Path) -> dict[str, Any] | None:
    try:
        return asdict(shape_of(folder))
    except (KeyError, ValueError):
        return None


def main(folder: Path) -> None:
    try:
        found: dict[str, Any] = {**asdict(probe(folder)), "shape": _shape(folder)}
        check_tokenizer(folder)
    except StageError as error:
        found = {"refused": error.message}
    sys.stdout.write(json.dumps(found) + "\n")
