"""A model as one GGUF file, for llama.cpp and Ollama: Llama and what is built like it.

GGUF holds the rotated halves of llama's queries and keys interleaved: a head's rows 0 … d/2 and d/2 … d become
0, d/2, 1, d/2 + 1, …; Qwen's stay as they are. Vectors are float32, matrices float16 or blocks of 32 in 8 bits (Q8_0).
Llama 3.1's scaled rotary embeddings are a vector more, `rope_freqs.weight`: by what each frequency is divided. A weight
at a time is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from allo_engine.checkpoints.convert import ROPE_FREQS, convert, slower
from allo_engine.checkpoints.folder import tied
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor
from allo_engine.exports.checking import Figures, difference, ids_of, of_folder, outputs
from allo_engine.exports.vocabulary import add_vocabulary
from allo_engine.model.loading import plain_model
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import StageError

Kind = Literal["f16", "q8_0"]

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
"""By config.json's model_type. SmolLM and SmolLM2 are llama."""

FILE = "model.gguf"
_KINDS = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
_FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def export(folder: Path, out: Path, kind: Kind) -> Figures:
    """Writes model.gguf and a Modelfile into `out`; raises StageError `refused` for a model that has no place in it.

    Read back by transformers' own reader of GGUF, its logits are compared with the model's, and how it cuts texts.
    """
    write(folder, out / FILE, kind)
    (out / "Modelfile").write_text(modelfile(folder), encoding="utf-8")
    wanted = of_folder(folder)
    with tempfile.TemporaryDirectory(dir=out) as read_back:
        convert(out / FILE, Path(read_back) / "model")
        found = outputs(plain_model(Path(read_back) / "model"), wanted.ids)
        same = ids_of(load_tokenizer(Path(read_back) / "model")) == list(wanted.ids)
    return {"logits": difference(wanted, found.logits), "tokens_equal": same}


def write(folder: Path, path: Path, kind: Kind) -> None:
    """The file alone."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = _architecture(config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_sizes(writer, config, kind)
    add_vocabulary(writer, folder, load_tokenizer(folder), config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    with Checkpoint(folder) as stored:
        tensors = dict(_named(stored, names, tied(folder)))
        rotary = _rotary(config)
        for name, factors in rotary.items():
            writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
        for name, tensor in tensors.items():
            _announce(writer, name, tensor, _KINDS[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factors in rotary.values():
            writer.write_tensor_data(factors)
        for name, tensor in tensors.items():
            values = tensor.read(0, tensor.size).reshape(tensor.shape)
            if architecture is gguf.MODEL_ARCH.LLAMA:
                values = _interleaved(values, name, config)
            writer.write_tensor_data(gguf.quantize(values, _kind_of(tensor, _KINDS[kind])))
    writer.close()


def modelfile(folder: Path) -> str:
    """What `ollama create` reads; the chat template stands in the file itself."""
    end = load_tokenizer(folder).eos_token
    return f'FROM ./{FILE}\nPARAMETER stop "{end}"\n'


def _architecture(config: Any) -> gguf.MODEL_ARCH:
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise StageError("refused", f"GGUF is written for models of type {known}; this one is {config.model_type}.")
    rope = _rope(config)
    if rope != "default" and (rope != "llama3" or config.model_type != "llama"):
        known = "plain rotary embeddings, and for Llama 3.1's"
        raise StageError("refused", f"GGUF is written for {known}; this {config.model_type} scales them as {rope}.")
    return ARCHITECTURES[config.model_type]


def _rotary(config: Any) -> dict[str, NDArray[np.float32]]:
    """The tensor of what frequencies are divided by, where they are."""
    return {ROPE_FREQS: slower(config).numpy()} if _rope(config) == "llama3" else {}


def _rope(config: Any) -> str:
    return str(config.rope_parameters.get("rope_type", "default"))


def _add_sizes(writer: gguf.GGUFWriter, config: Any, kind: Kind) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(config.model_type)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _named(stored: Checkpoint, names: Any, tied: bool) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in stored.tensors.items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StageError("refused", f"GGUF has no place for the weight {name}.")
        yield found, tensor


def _kind_of(tensor: StoredTensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    if len(tensor.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    blocks = wanted is not gguf.GGMLQuantizationType.Q8_0 or tensor.shape[-1] % 32 == 0
    return wanted if blocks else gguf.GGMLQuantizationType.F16


def _announce(writer: gguf.GGUFWriter, name: str, tensor: StoredTensor, wanted: gguf.GGMLQuantizationType) -> None:
    kind = _kind_of(tensor, wanted)
    shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
    writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)


def _interleaved(values: NDArray[np.float32], name: str, config: Any) -> NDArray[np.float32]:
    """Queries and keys as GGUF's llama has them."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
