"""What a stage holds in memory, from a model's shape alone: for choosing row lengths, and for estimates. Free of torch.

Bytes a weight that a stage holds, whatever the row (w = bytes of a weight in the precision that is computed in, ρ = the
mask's share, m = bytes of a moment: 4, or 1 and a scale for each 256):

    forward      w
    dense        8 + 2m         float32 weight and gradient, AdamW's two moments
    sparse       w + ρ(12 + 2m) masked values, their gradient and places, two moments
    gradient     w + 4          a float32 accumulator of the gradient; on the host, where it is told so, w

A dense stage over P devices, by what DeepSpeed shares out (ZeRO; it keeps a second float32 copy of the weights that a
device updates, and for the step a second one of their gradient; `offload` takes copy and moments to the host):

    1            8 + (8 + 2m)/P          weight and gradient, and the shared rest
    2            4 + (12 + 2m)/P         weight
    3            (16 + 2m)/P

A masked stage shares out nothing but its frozen weights (stage 3, by torch's FSDP): w/P + ρ(12 + 2m); and the gradient
that locates its mask before it (w + 4)/P.

What a row adds is what autograd keeps of it and the attention's masks (activations.py), the head's logits, and what
stands a moment: the largest weight's gradient while it is gathered or added, and the 16-bit copies that autocast makes
of float32 weights. `allo bench memory-formula` holds the sum against measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from allo_engine.bases import Moments
from allo_engine.model.activations import (
    backward_bytes,
    behind_the_layers,
    inputs_bytes,
    kept_bytes,
    mask_bytes,
    passing_bytes,
)
from allo_engine.model.shape import Shape

Kind = Literal["forward", "dense", "sparse", "gradient", "gradient_on_host"]

SMALLEST_ROW = 32
"""Rows are not made shorter than this: what still does not fit then is a single sequence."""

HEAD_CHUNK_BYTES = {"cpu": 32 << 20}
HEAD_CHUNK_BYTES_ELSEWHERE = 256 << 20
"""The head's float32 logits that are held at once (see head.py)."""

HEAD_KEPT_BYTES = 96 << 20
"""Logits of a training row that are kept for its backward pass, where they are so few, instead of made again."""

SPARE = 0.95
"""Rows are fitted to this share of a budget: blocks of unlike sizes leave gaps, and libraries want a little too."""

CONTEXT_BYTES_ELSEWHERE = 600_000_000
"""What a process takes of an accelerator before its first tensor: the driver's context, kernels, cuBLAS's workspace."""

MOMENT_BYTES: Mapping[Moments, float] = {"float32": 4, "8bit": 1 + 4 / 256}
"""A moment; in 8 bits it has a float32 scale for each 256."""

ZERO_BUCKET = 50_000_000
"""Entries that DeepSpeed exchanges at once: float32 in a buffer of its own."""

LONGEST = 1 << 20
"""No row is longer, however much memory there is."""


@dataclass(frozen=True)
class Use:
    """How a stage uses a model. `weight_bytes` is of the precision it computes in, `ratio` the mask's share; `packs`
    says that rows hold many sequences, else each is read by itself.

    A dense stage has float32 weights, whatever it computes in.
    """

    kind: Kind
    weight_bytes: int
    ratio: float = 1.0
    moments: Moments = "float32"
    checkpointing: bool = False
    device_type: str = "cpu"
    packs: bool = True
    zero: int = 0
    devices: int = 1
    offload: bool = False

    @property
    def training(self) -> bool:
        return self.kind != "forward"

    @property
    def autocast(self) -> bool:
        return self.kind == "dense" and self.weight_bytes < 4


def held_bytes(shape: Shape, use: Use) -> int:
    """What a stage holds whatever its rows."""
    moments, sharers = 2 * MOMENT_BYTES[use.moments], use.devices if use.zero == 3 else 1
    a_weight = {
        "forward": use.weight_bytes / sharers,
        "dense": _dense_bytes(use, moments),
        "sparse": use.weight_bytes / sharers + use.ratio * (12 + moments),
        "gradient": (use.weight_bytes + 4) / sharers,
        "gradient_on_host": use.weight_bytes / sharers,
    }
    buffer = 4 * ZERO_BUCKET if use.zero and use.kind == "dense" else 0
    return round(a_weight[use.kind] * shape.weights) + buffer


def _dense_bytes(use: Use, moments: float) -> float:
    """Of a weight: itself and its gradient; its moments and, where they are shared out, DeepSpeed's copies."""
    if not use.zero:
        return 8 + moments
    whole = {1: 8, 2: 4, 3: 0}[use.zero]
    copies = 0 if use.offload else 8 + moments
    return whole + (8 - whole + copies) / use.devices


def row_bytes(shape: Shape, use: Use, tokens: int) -> int:
    """The most that a row of so many tokens adds to what is held, at any moment of its passes."""
    mask, head = mask_bytes(shape, use, tokens), head_bytes(shape, use, tokens)
    if not use.training:
        return max(mask + tokens * passing_bytes(shape, use), head)
    layers, one_layer, of_head = _copies(shape, use)
    kept = tokens * inputs_bytes(shape, use) if use.checkpointing else tokens * token_bytes(shape, use)
    again = tokens * kept_bytes(shape, use) if use.checkpointing else 0
    waiting = _waiting_gradient(shape, use)
    moments = [
        # the head's forward pass: autocast keeps what it copied, whether activations are kept or not
        kept + layers + of_head + head,
        # the head's backward pass, and behind it: its copy is gone, its gradient stands in 16 bits and in float32
        kept + (0 if use.checkpointing else layers) + of_head + _head_backward(shape, use, tokens),
        kept + (0 if use.checkpointing else layers) + (6 * shape.vocabulary * shape.hidden if use.autocast else 0),
        # the last layer's backward pass, the first of them
        kept + (one_layer if use.checkpointing else layers) + again + tokens * backward_bytes(shape, use) + waiting,
        # the embedding's: nothing else is left but the head's gradient, if they are tied
        2 * max(waiting, _gradient_bytes(use) * shape.largest // 2),
    ]
    return mask + _gathered_bytes(shape, use) + max(moments)


def row_tokens(shape: Shape, use: Use, budget_bytes: int) -> int:
    """The longest row that fits a budget of memory for model, optimizer and activations; at least SMALLEST_ROW."""
    room = SPARE * budget_bytes - held_bytes(shape, use)
    fits, fails = SMALLEST_ROW, LONGEST
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if row_bytes(shape, use, middle) <= room else (fits, middle)
    return fits


def least_zero(shape: Shape, use: Use, budget_bytes: int, tokens: int) -> int:
    """The stage of ZeRO that shares out least of those in which a row of so many tokens fits, with activations
    computed twice if need be; 3 where it fits in none.
    """
    for zero in (0, 1, 2):
        lean = replace(use, zero=zero, checkpointing=True)
        if held_bytes(shape, lean) + row_bytes(shape, lean, tokens) <= SPARE * budget_bytes:
            return zero
    return 3


def token_bytes(shape: Shape, use: Use) -> int:
    """Activations that one token of a row adds.

    Training keeps every layer's; gradient checkpointing keeps every layer's input and one layer's rest; a forward pass
    alone holds about one layer's.
    """
    if not use.training:
        return passing_bytes(shape, use)
    if use.checkpointing:
        return inputs_bytes(shape, use) + kept_bytes(shape, use)
    return shape.layers * kept_bytes(shape, use) + behind_the_layers(shape, use)


def head_bytes(shape: Shape, use: Use, tokens: int | None = None) -> int:
    """The head's logits in float32, if every token of a row is predicted; without `tokens`, of a long row.

    All of them where a training row has few, else a chunk at a time; and as much as a chunk again, which its log-sums
    are made of.
    """
    chunk, size = _head_chunk(shape, use, tokens)
    return (size if _kept_logits(use, size) else min(chunk, size)) + min(chunk, size)


def _head_chunk(shape: Shape, use: Use, tokens: int | None) -> tuple[int, int]:
    """(bytes of the logits that are held at once, of all logits)."""
    chunk = max(HEAD_CHUNK_BYTES.get(use.device_type, HEAD_CHUNK_BYTES_ELSEWHERE), 4 * shape.vocabulary)
    return chunk, chunk if tokens is None else 4 * shape.vocabulary * tokens


def _kept_logits(use: Use, size: int) -> bool:
    return use.training and size <= HEAD_KEPT_BYTES


def _head_backward(shape: Shape, use: Use, tokens: int) -> int:
    """Logits and, where it is computed in 16 bits, the same in 16 bits; the weight's gradient, in the precision that is
    computed in; and that of the head's input, which is summed in float32.
    """
    chunk, size = _head_chunk(shape, use, tokens)
    logits = size if _kept_logits(use, size) else min(chunk, size)
    weight = shape.vocabulary * shape.hidden * use.weight_bytes
    narrow = logits // 2 if use.weight_bytes < 4 else 0
    return logits + narrow + weight + tokens * shape.hidden * (4 + 2 * use.weight_bytes)


def cache_bytes(shape: Shape, weight_bytes: int) -> int:
    """Keys and values that decoding keeps for one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * weight_bytes


def _copies(shape: Shape, use: Use) -> tuple[int, int, int]:
    """The copies in 16 bits that autocast makes of float32 weights: of all layers', one layer's, the head's. The
    embedding is looked up.
    """
    if not use.autocast:
        return 0, 0, 0
    head = shape.vocabulary * shape.hidden
    layers = use.weight_bytes * (shape.weights - head * (1 if shape.tied else 2))
    return layers, layers // shape.layers, use.weight_bytes * head


def _gathered_bytes(shape: Shape, use: Use) -> int:
    """What stands whole of weights that are shared out.

    By DeepSpeed: the head for all of a row, what is at work, what is next. By FSDP: all that is in no layer for all of
    a row, a layer at work, and the next one; where gradients are shared out too, those of a layer, or of all that is in
    none, as they are and in float32 on their way.
    """
    if use.zero < 3:
        return 0
    outside = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    if use.kind == "dense":
        return 4 * (shape.vocabulary * shape.hidden + shape.largest + ZERO_BUCKET)
    layer = (shape.weights - outside) // shape.layers
    passing = (use.weight_bytes + 4) * max(layer, outside) if use.kind.startswith("gradient") else 0
    return use.weight_bytes * (outside + 2 * layer) + passing


def _gradient_bytes(use: Use) -> int:
    """Of an entry of a weight's gradient as the backward pass hands it on."""
    return 4 if use.kind == "dense" else use.weight_bytes


def _waiting_gradient(shape: Shape, use: Use) -> int:
    """A tied head's gradient waits for the embedding's to the end of the backward pass; masked entries do not."""
    waits = shape.tied and use.kind != "sparse"
    return _gradient_bytes(use) * shape.vocabulary * shape.hidden if waits else 0


def available_bytes(device_type: str) -> int:
    """Free memory: on "cuda" the accelerator's, with what torch has of it and does not use; else the machine's or, if
    lower, what this process's cgroup leaves.
    """
    if device_type == "cuda":
        import torch  # here: the rest of this module is free of it

        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused
    return min([machine_bytes(), *cgroup_bytes()])


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
