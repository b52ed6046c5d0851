"""What a row's activations take, a token, and its masks: parts of the formulas in memory.py. Free of torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from allo_engine.model.shape import Shape

if TYPE_CHECKING:
    from allo_engine.model.memory import Use


def kept_bytes(shape: Shape, use: Use) -> int:
    """What autograd keeps of one token in one layer, from one layer's input to the next.

    A norm keeps its input in float32 and what it was scaled to. Products keep their inputs: the first ones' of the
    attention and of the feed-forward part, once where autocast does not cast them for each of five. Attention keeps
    queries, keys and values, its output as it is and as the next product takes it, and a number a head; the
    feed-forward part gate, activation, up and their product.
    """
    width = use.weight_bytes
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    scaled, inputs = (4, 5) if use.autocast else (width, 2)
    norms = shape.norms * (4 + scaled) * shape.hidden + shape.head_norms * (4 + width) * (queries + keys)
    products = (inputs * shape.hidden + 3 * queries + 2 * keys + 4 * shape.intermediate) * width
    return norms + products + 4 * (shape.heads + shape.norms)


def inputs_bytes(shape: Shape, use: Use) -> int:
    """What gradient checkpointing keeps of one token: every layer's input, and what is behind the layers."""
    return shape.layers * shape.hidden * (4 if use.autocast else use.weight_bytes) + behind_the_layers(shape, use)


def behind_the_layers(shape: Shape, use: Use) -> int:
    """What the last norm and the head keep of one token."""
    return (4 + (6 if use.autocast else 2 * use.weight_bytes)) * shape.hidden


def passing_bytes(shape: Shape, use: Use) -> int:
    """What one token takes at the widest place of a forward pass: activation, up and product, or the attention's
    tensors; beside its input, and a norm's in float32.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    widest = max(3 * shape.intermediate, 4 * queries + 6 * keys)
    return widest * use.weight_bytes + (2 * use.weight_bytes + 4) * shape.hidden


def backward_bytes(shape: Shape, use: Use) -> int:
    """What one token takes at the widest place of a layer's backward pass, beside what is kept: the gradients of a
    product's two factors, and that of the layer's output.
    """
    return 2 * shape.intermediate * use.weight_bytes + (4 if use.autocast else use.weight_bytes) * shape.hidden


def mask_bytes(shape: Shape, use: Use, tokens: int) -> int:
    """What says which tokens a row's tokens see, for all layers; nothing where they are a single sequence's.

    On a CPU, of a row that is a single sequence: a number a pair, and again for the query heads that share a key, in
    what is computed in (see attention.py). Elsewhere the blocks of 128 × 128 pairs that FlexAttention visits, four
    indices each.
    """
    if not use.packs:
        return 0
    if use.device_type != "cpu":
        return 16 * math.ceil(tokens / 128) ** 2
    return (4 + shape.heads // shape.kv_heads * use.weight_bytes) * tokens**2
