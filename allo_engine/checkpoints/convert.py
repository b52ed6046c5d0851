"""A quantised GGUF file → a plain Hugging Face folder in float32, once.

`python -m allo_engine.checkpoints.convert SOURCE.gguf DESTINATION`

Every stage of the engine reads one kind of model: a folder with safetensors, config and tokenizer. GGUF stores its
weights in quantised blocks; here they are unpacked once, to the float32 values that inference on the file would use,
so that training starts from exactly those. No network is needed, and the folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from allo_engine.forks import leave

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What a converted folder holds at least."""

DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Pre-tokenizers, by their names in GGUF, that cut every digit off before GPT-2's pattern cuts the rest."""


ROPE_FREQS = "rope_freqs.weight"
"""The tensor by which rotary frequencies are divided, one number a pair of a head's dimensions."""

_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {"rope_type": "llama3"} | _BANDS
"""Every Llama 3.1, 3.2 and 3.3; they differ in `factor` alone."""


class ConversionError(ValueError):
    """A source that is no GGUF model, or a destination that holds something else."""


def convert(source: Path, destination: Path) -> bool:
    """Write `source` as a Hugging Face folder. False if `destination` already holds one: then nothing is touched.

    The folder is written beside its destination, flushed to disk and renamed, so an interrupted run leaves no half of
    a model behind, and of two runs at once one wins. Raises ConversionError.
    """
    if is_complete(destination):
        return False
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConversionError(f"{destination} exists and holds no converted model; name another folder or remove it.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _write(source, aside)
        _seal(aside)
        return _rename(aside, destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a whole model. A folder that `convert` wrote always does."""
    return all((folder / name).is_file() for name in FILES)


def _write(source: Path, folder: Path) -> None:
    if not _is_gguf(source):
        raise ConversionError(f"{source} is no GGUF file.")
    import torch  # here, because a folder that is already complete needs neither
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    _restore_digit_splitting(tokenizer, pre_tokenizer_name(source))
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    )
    _restore_rotary_scaling(model.config, source)
    model.save_pretrained(folder, max_shard_size="1TB")  # one file, whatever the size: FILES names it


def _is_gguf(source: Path) -> bool:
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return file.read(4) == b"GGUF"


def pre_tokenizer_name(source: Path) -> str:
    """The file's `tokenizer.ggml.pre`: the name by which llama.cpp knows how to cut text before BPE merges it."""
    from gguf import GGUFReader

    field = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    return "" if field is None else str(field.contents())


def slower(config: PreTrainedConfig) -> Tensor:
    """By what a model's scaling divides its rotary frequencies θ^(-2i/d), i from 0 to d/2: float32 [d/2]."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    powers = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    divided: Tensor = rope["rope_theta"] ** -powers / scaled
    return divided


def _restore_rotary_scaling(config: PreTrainedConfig, source: Path) -> None:
    """Scale rotary frequencies as the file does, which transformers forgets: as Llama 3 where that gives the file's
    numbers, else by the numbers themselves."""
    import torch
    from gguf import GGUFReader

    found = next((tensor.data for tensor in GGUFReader(source).tensors if tensor.name == ROPE_FREQS), None)
    if found is None:
        return
    factors = torch.tensor(found, dtype=torch.float32)
    theta = {"rope_theta": config.rope_parameters["rope_theta"]}
    config.rope_parameters = theta | LLAMA3 | {"factor": round(float(factors.max()), 3)}
    if torch.allclose(slower(config), factors, rtol=1e-4):
        return
    each = {"short_factor": factors.tolist(), "long_factor": factors.tolist(), "attention_factor": 1.0}
    most = {"original_max_position_embeddings": config.max_position_embeddings // 2}  # the same on both sides of it
    config.rope_parameters = theta | {"rope_type": "longrope"} | each | most


def _restore_digit_splitting(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Cut off every digit before anything else, where the file's pre-tokenizer does and transformers forgets it.

    GGUF names its pre-tokenizer instead of describing it, and transformers builds GPT-2's for every name. Without the
    first cut a paragraph break before a digit ("\\n\\n1.") becomes two tokens where the model was trained on one.
    """
    if name not in DIGIT_SPLITTERS:
        return
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # GGUF gives fast tokenizers only
    cuts = [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)


def _seal(folder: Path) -> None:
    """Flush every file to disk and let others read it: safetensors writes with mode 0600 and without fsync."""
    folder.chmod(0o755)
    for path in [*folder.iterdir(), folder]:
        if path.is_file():
            path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(aside: Path, destination: Path) -> bool:
    try:
        aside.rename(destination)
    except OSError:
        if is_complete(destination):  # another run was faster
            return False
        raise
    return True


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when the folder is there, 1 with a reason when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.checkpoints.convert", description=__doc__.split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("destination", type=Path, help="the folder to write; left alone if it already holds a model")
    arguments = parser.parse_args(argv)
    try:
        written = convert(arguments.source, arguments.destination)
    except ConversionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{'wrote' if written else 'kept'} {arguments.destination}\n")
    return 0


if __name__ == "__main__":
    leave(main())
