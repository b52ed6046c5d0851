"""What a stage holds in memory, from a model's shape alone: for choosing row lengths, and for estimates. Free of torch.

Bytes a weight that a stage holds, whatever the row (w = bytes of a stored weight, ρ = the mask's share):

    forward    w
    dense      16            float32 weight, gradient and AdamW's two moments
    sparse     w + 20ρ       masked values, their gradient, two moments, and places of 4 bytes
    gradient   w + 4         a float32 accumulator of the gradient

`sparse` and `gradient` also hold the largest weight's dense gradient, in float32 and in the weight's own precision,
while its entries are gathered. Activations were counted with autograd's saved tensors on a Llama of transformers 5: see
`_layer_bytes`.
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from allo_engine.checkpoints.folder import stored_tensors, tied

Kind = Literal["forward", "dense", "sparse", "gradient"]

SMALLEST_ROW = 32
"""Rows are not made shorter than this: what still does not fit then is a single sequence."""

HEAD_CHUNK_BYTES = {"cpu": 32 << 20}
HEAD_CHUNK_BYTES_ELSEWHERE = 512 << 20
"""The head's float32 logits that are held at once (see head.py)."""

HEAD_KEPT_BYTES = 96 << 20
"""Logits of a training row that are kept for its backward pass, where they are so few, instead of made again."""

HEAD_COPIES = 2
"""So many such chunks stand at a time: the logits, and what is made of them."""

ALLOCATOR = 1.25
"""Activations take so many times their bytes: what the allocator has cut up, and what one operation needs meanwhile."""

DENSE_BYTES, MASKED_BYTES, ACCUMULATOR_BYTES = 16, 20, 4


@dataclass(frozen=True)
class Shape:
    """A causal language model's sizes: tied weights count once; `largest` is the largest tensor's entries."""

    weights: int
    stored_bytes: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    largest: int


def shape_of(folder: Path) -> Shape:
    """A model's shape from its config.json and the headers of its safetensors files; no weight is read.

    Raises OSError or ValueError where these files are missing or damaged, KeyError where a size is not named.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    one_embedding = tied(folder)
    stored = stored_tensors(folder)
    counted = [tensor for name, tensor in stored.items() if not (one_embedding and name == "lm_head.weight")]
    entries = [math.prod(tensor["shape"]) for tensor in counted]
    heads = config["num_attention_heads"]
    return Shape(
        weights=sum(entries),
        stored_bytes=sum(end - begin for begin, end in (tensor["data_offsets"] for tensor in stored.values())),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=one_embedding,
        largest=max(entries),
    )


def held_bytes(shape: Shape, kind: Kind, ratio: float, weight_bytes: int) -> int:
    """What a stage holds whatever its rows; `ratio` is the mask's share (kind "sparse")."""
    transient = shape.largest * (4 if weight_bytes == 4 else 4 + weight_bytes)
    if kind == "dense":
        return DENSE_BYTES * shape.weights
    if kind == "sparse":
        return weight_bytes * shape.weights + round(MASKED_BYTES * ratio * shape.weights) + transient
    if kind == "gradient":
        return (weight_bytes + ACCUMULATOR_BYTES) * shape.weights + transient
    return weight_bytes * shape.weights


def token_bytes(shape: Shape, weight_bytes: int, training: bool, gradient_checkpointing: bool = False) -> int:
    """Activations that one token of a row adds.

    Training keeps every layer's; gradient checkpointing keeps every layer's input and one layer's rest; a forward pass
    alone holds about one layer's.
    """
    layer = _layer_bytes(shape, weight_bytes)
    if not training:
        return layer
    if gradient_checkpointing:
        return shape.layers * shape.hidden * weight_bytes + layer
    return shape.layers * layer


def row_bytes(
    shape: Shape,
    tokens: int,
    weight_bytes: int,
    training: bool,
    gradient_checkpointing: bool = False,
    device_type: str = "cpu",
) -> int:
    """What a row of so many tokens adds to what is held: activations and the head's logits."""
    activations = tokens * token_bytes(shape, weight_bytes, training, gradient_checkpointing)
    kept = HEAD_KEPT_BYTES if training else 0
    return round(ALLOCATOR * activations) + head_bytes(shape, device_type) + kept


def head_bytes(shape: Shape, device_type: str = "cpu") -> int:
    """The head's logits, in float32, a chunk of positions at a time; one position at least."""
    chunk = HEAD_CHUNK_BYTES.get(device_type, HEAD_CHUNK_BYTES_ELSEWHERE)
    return HEAD_COPIES * max(chunk, 4 * shape.vocabulary)


def row_tokens(
    shape: Shape,
    kind: Kind,
    ratio: float,
    weight_bytes: int,
    budget_bytes: int,
    gradient_checkpointing: bool = False,
    device_type: str = "cpu",
) -> int:
    """The longest row that fits a budget of memory for model, optimizer and activations; at least SMALLEST_ROW.

    The budget is what is left when the process has started and the model is not loaded yet.
    """
    training = kind != "forward"
    room = budget_bytes - held_bytes(shape, kind, ratio, weight_bytes) - head_bytes(shape, device_type)
    room -= HEAD_KEPT_BYTES if training else 0
    longest = room / (ALLOCATOR * token_bytes(shape, weight_bytes, training, gradient_checkpointing))
    return max(SMALLEST_ROW, math.floor(longest))


def cache_bytes(shape: Shape, weight_bytes: int) -> int:
    """Keys and values that decoding keeps for one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * weight_bytes


def _layer_bytes(shape: Shape, weight_bytes: int) -> int:
    """What one layer keeps of one token: six tensors of the hidden size (two norms: input, normalised, scaled), four of
    the attention's (query, key and value repeated for all heads, output), four of the intermediate size (gate, its
    activation, up, product). Norms keep two of theirs in float32 where weights are shorter.
    """
    entries = 6 * shape.hidden + 4 * shape.heads * shape.head_size + 4 * shape.intermediate
    return entries * weight_bytes + (4 - weight_bytes) * 2 * shape.hidden


def available_bytes(device_type: str) -> int:
    """Free memory: the accelerator's on "cuda", else the machine's or, if lower, what this process's cgroup leaves."""
    if device_type == "cuda":
        import torch  # here: the rest of this module is free of it

        return int(torch.cuda.mem_get_info()[0])
    return min([machine_bytes(), *cgroup_bytes()])


def keep_freed_memory() -> None:
    """Let what is freed stay with the process for the next row, where the C library is glibc.

    By default large blocks go back to the kernel as soon as they are freed and their pages are cleared anew each time,
    which takes about 3 % of a row's time.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h's names of what mallopt(3) sets."""


def machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """MemAvailable: what can be had without swapping."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def cgroup_bytes(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the limits (cgroup v2) of this process's group and of the groups above it leave; none where none is set.

    The page cache that the kernel would give up first (inactive files) counts as free.
    """
    paths = [line.partition("::")[2] for line in membership.read_text().splitlines() if line.startswith("0::")]
    group = root / paths[0].lstrip("/") if paths else root
    found = []
    for folder in (group, *group.parents):
        if folder.is_relative_to(root) and (folder / "memory.max").exists():
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                found.append(int(limit) - int((folder / "memory.current").read_text()) + _inactive(folder))
    return [max(0, left) for left in found]


def _inactive(folder: Path) -> int:
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(stat.get("inactive_file", 0))
