"""The formulas of model/memory.py against measured peaks, on random models with real shapes.

    python -m tests.benchmarks.memory            every case, as a table
    python -m tests.benchmarks.memory 3 0        some of them

What torch's allocator has live is followed by its profiler, event by event, so a peak is exact: no page that the C
library keeps is in it, and none is missed between two looks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.loading import recompute_activations
from allo_engine.model.logps import computing, token_logps
from allo_engine.model.memory import Use, held_bytes, row_bytes
from allo_engine.model.sequences import Row, build_row, singles
from allo_engine.model.shape import Shape, shape_from

GIB = 2**30

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "Qwen3, 31M": {
        "model_type": "qwen3", "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "head_dim": 64,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "Llama, 230M, untied": {
        "model_type": "llama", "hidden_size": 640, "intermediate_size": 2240, "num_hidden_layers": 6,
        "num_attention_heads": 10, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A use of a shape, and the tokens of its row."""

    shape: str
    use: Use
    tokens: int
    sequences: int = 1


def cases() -> list[Measured]:
    found = []
    for shape in SHAPES:
        tokens = 1024
        for width in (4, 2):
            found.append(Measured(shape, Use("forward", width), tokens))
            for again in (False, True):
                found.append(Measured(shape, Use("sparse", width, 0.05, checkpointing=again), tokens))
                found.append(Measured(shape, Use("dense", width, checkpointing=again), tokens))
        found.append(Measured(shape, Use("gradient", 4), tokens))
    return found


def peak(work: Callable[[], object]) -> int:
    """The most bytes that are live in torch's allocator while work runs, beyond those that were before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    found = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in found]).max(initial=0))


def random_model(name: str, dtype: torch.dtype) -> tuple[Shape, PreTrainedModel]:
    values = SHAPES[name]
    config = AutoConfig.for_model(**values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.set_attn_implementation(NAME)
    return shape_from(
        values, {key: list(weight.shape) for key, weight in model.named_parameters()}, values["tie_word_embeddings"]
    ), model


def row_of(case: Measured) -> Row:
    length = case.tokens // case.sequences
    return build_row([singles(key, [key + 5], [[key + 7] * length]) for key in range(case.sequences)])


def measured(case: Measured) -> tuple[Shape, int, int]:
    """(shape, bytes held, bytes that one row adds)."""
    use = case.use
    dtype = torch.bfloat16 if use.weight_bytes == 2 and use.kind != "dense" else torch.float32
    shape, model = random_model(case.shape, dtype)
    row = row_of(case)
    if use.kind == "forward":
        with torch.no_grad():
            token_logps(model, row)  # what is found out once
            return shape, _bytes(model.parameters()), peak(lambda: token_logps(model, row))
    if use.checkpointing:
        recompute_activations(model)
    parameters = list(model.parameters())
    held = _bytes(parameters)
    if use.kind == "sparse":
        step = round(1 / use.ratio)
        places = {name: np.arange(0, weight.numel(), step) for name, weight in model.named_parameters()}
        sparse = SparseModel(model, {n: (p, np.zeros(len(p), np.float32)) for n, p in places.items()})
        parameters = list(sparse.values.values())
        held += _bytes(parameters) + sum(4 * len(place) for place in places.values())
    precision = "bfloat16" if use.weight_bytes == 2 else "float32"
    for weight in parameters:
        weight.grad = torch.zeros_like(weight)
    held += _bytes(weight.grad for weight in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step_of() -> None:
        with computing(model, precision):
            logps = token_logps(model, row)
        logps.sum().backward()

    step_of()
    if use.kind != "gradient":
        optimizer.step()
        held += sum(_bytes(v for k, v in state.items() if k != "step") for state in optimizer.state.values())
    return shape, held, peak(step_of)


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def main(numbers: list[int]) -> None:
    for number, case in enumerate(cases()):
        if numbers and number not in numbers:
            continue
        shape, held, row = measured(case)
        predicted = held_bytes(shape, case.use), row_bytes(shape, case.use, case.tokens)
        use, both = case.use, (sum(predicted), held + row)
        again = "twice" if use.checkpointing else ""
        cells = [f"{number:>2} {case.shape:<20} {use.kind:<8} {8 * use.weight_bytes:>2} bit {again:<5}"]
        cells += [_compared(*pair) for pair in (*zip(predicted, (held, row), strict=True), both)]
        print("   ".join(cells), flush=True)


def _compared(predicted: int, measured: int) -> str:
    return f"{predicted / 2**20:8.1f} {measured / 2**20:8.1f} ({predicted / measured - 1:+6.1%})"


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
