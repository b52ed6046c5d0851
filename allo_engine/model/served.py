"""What vLLM holds of memory where it serves a model: by its own accounting, and the shares that we give it. Free of
torch.

weights    in the precision that is computed in
a pass     as vLLM tries one out when it starts: BATCHED tokens, and every row's logits in float32, twice
cache      keys and values in blocks: one response's at its longest at least, or it does not start

On an accelerator the cache is what is left of SHARE of what is free. On a CPU it is what all rows need at their longest
and one more, if half of that is free.
"""

from __future__ import annotations

from allo_engine.model.activations import passing_bytes
from allo_engine.model.memory import Use, cache_bytes
from allo_engine.model.shape import Shape

SHARE = 0.9
"""Of what is free at the start: what the engine takes for weights, activations, keys and values."""

BLOCK = 32
"""Tokens of a block of keys and values on a CPU: prompts are shared by whole blocks, and vLLM's own 128 is longer than
many."""

PROCESS_BYTES = {"cpu": 1_000_000_000}
"""Of a process that has imported vLLM, and of the stage's beside it: 1.0 GB of vLLM 0.32 with a model of 1 MB. What an
accelerator holds is counted without it."""

BATCHED = 2048
"""Tokens that vLLM reads at once (its `max_num_batched_tokens` where nothing is said)."""


def least_served_bytes(shape: Shape, use: Use, rows: int, length: int) -> int:
    """What must be free for vLLM to start, with so many rows of at most `length` tokens."""
    return round((_held_bytes(shape, use, rows) + _cached_bytes(shape, use, 1, length)) / SHARE)


def served_bytes(shape: Shape, use: Use, rows: int, length: int, free: int) -> int:
    """What vLLM takes where so much is free."""
    if use.device_type != "cpu":
        return round(SHARE * free)
    cache = min(_cached_bytes(shape, use, rows + 1, length), round(SHARE * free / 2))
    return _held_bytes(shape, use, rows) + cache


def _held_bytes(shape: Shape, use: Use, rows: int) -> int:
    return use.weight_bytes * shape.weights + BATCHED * passing_bytes(shape, use) + 8 * rows * shape.vocabulary


def _cached_bytes(shape: Shape, use: Use, rows: int, length: int) -> int:
    return rows * -(-length // BLOCK) * BLOCK * cache_bytes(shape, use.weight_bytes)
