"""A training row of 8,192 tokens of a model of one of SmolLM2's shapes, in a mask of 5 %: pace, peak and waits.

python -m tests.gpu.pace 135M prints one JSON object: tokens/s, MFU (6·N FLOPs a token over what plain products of the
card reach), peak memory in GB, the share of it that our formula says, for no optimizer is there, and how often a row
made the host wait for the device.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch
from transformers import LlamaForCausalLM

from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.loading import device
from allo_engine.model.logps import token_logps
from allo_engine.model.memory import Use, row_bytes
from allo_engine.model.sequences import build_row, singles
from allo_engine.model.shape import shape_in_memory
from tests.benchmarks.pairs import MASK, random_entries
from tests.gpu import stand_in

LENGTH, RESPONSES, REPEATS = 8192, 16, 8


def model(shape: str) -> LlamaForCausalLM:
    with device():
        model = LlamaForCausalLM._from_config(stand_in.config(shape), dtype=torch.bfloat16).eval()
    model.set_attn_implementation(NAME)
    return model


def products() -> float:
    """FLOPs a second of a bfloat16 product of 8,192³."""
    left, right = (torch.randn(8192, 8192, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: left @ right)


def seconds(work: object) -> float:
    for _ in range(2):
        work()  # type: ignore[operator]
    torch.accelerator.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()  # type: ignore[operator]
    torch.accelerator.synchronize()
    return (time.perf_counter() - began) / REPEATS


def main(shape: str) -> None:
    trained = model(shape)
    formula, weights = shape_in_memory(trained), trained.num_parameters()
    SparseModel(trained, random_entries(trained))
    length = LENGTH // RESPONSES
    responses = [[(7 * place + number) % 49152 for place in range(length)] for number in range(RESPONSES)]
    row = build_row([singles(0, [1, 2, 3], responses)], device())

    def step() -> None:
        token_logps(trained, row).sum().backward()

    took = seconds(step)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    tokens, peak = row.ids.shape[1], torch.cuda.max_memory_allocated()
    expected = weights * (2 + 12 * MASK) + row_bytes(formula, Use("sparse", 2, MASK, device_type="cuda"), tokens)
    found = {
        "tokens/s": tokens / took,
        "MFU": 6 * weights * tokens / took / products(),
        "peak GB": peak / 1e9,
        "peak by formula": expected / peak,
        "waits a row": sum("synchroniz" in str(wait.message) for wait in waits),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
