"""What decoding holds in memory beside a model (sampling/ has what it is made of). Free of torch.

cache      every row's keys and values, as long as the longest row will be, and those of the prompts read last
reading    a forward pass over the prompts that are read together
a step     each row's logits, as the head gives them, in float32 and at their temperature; the nuclei of a few rows
"""

from __future__ import annotations

from allo_engine.model.memory import HEAD_CHUNK_BYTES, HEAD_CHUNK_BYTES_ELSEWHERE, Use, cache_bytes, token_bytes
from allo_engine.model.shape import Shape

READ_TOKENS = 8192
"""Prompts are read so many tokens at a time, padded, or one alone."""

ALIGNED = 8
"""Rows are read up to a multiple of so many tokens: the length that CUDA's kernels want of a mask."""

NUCLEUS_BYTES = 61
"""Bytes a token of the vocabulary where a row's nucleus is looked for in all of it: it is sorted twice."""


def decoding_bytes(shape: Shape, use: Use, rows: int, length: int, read: int, kept: int | None = None) -> int:
    """The most that decoding adds to what is held: rows of at most `length` tokens, prompts of `read` tokens read at
    once, padding counted. `kept` is what the cache has of one token, where that was seen.
    """
    length = -(-length // ALIGNED) * ALIGNED
    cache = (rows * length + read) * (kept or cache_bytes(shape, use.weight_bytes))
    reading = read * token_bytes(shape, use)
    return cache + max(reading, _step_bytes(shape, use, rows))


def read_tokens(rows: int, longest: int) -> int:
    """Tokens of the prompts that are read at once, of which the longest has `longest`: a row's each, if so many."""
    return max(longest, min(rows * longest, READ_TOKENS))


def wide_rows(vocabulary: int, device_type: str) -> int:
    """How many rows look for their nucleus in the whole vocabulary at once."""
    chunk = HEAD_CHUNK_BYTES.get(device_type, HEAD_CHUNK_BYTES_ELSEWHERE)
    return max(1, chunk // (NUCLEUS_BYTES * vocabulary))


def _step_bytes(shape: Shape, use: Use, rows: int) -> int:
    logits = (use.weight_bytes if use.weight_bytes < 4 else 0) + 4
    nuclei = NUCLEUS_BYTES * min(rows, wide_rows(shape.vocabulary, use.device_type))
    return shape.vocabulary * (rows * logits + max(rows * 8, nuclei)) + rows * token_bytes(shape, use)
