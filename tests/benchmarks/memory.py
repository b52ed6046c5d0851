"""The formulas of model/memory.py and model/decoding.py against measured peaks, on random models with real shapes.

    allo bench memory-formula --repeats 1       the chosen cases; a peak is the same each time
    python -m tests.benchmarks.memory           every case there is, as a table
    python -m tests.benchmarks.memory 3 0       some of them

What torch's allocator has live is followed by its profiler, event by event, so a peak is exact: no page that the C
library keeps is in it, and none is missed between two looks. Beside a stage's whole peak stands what a row or decoding
adds to what is held: by that rows are fitted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from allo_engine.masking.gradients import summed_gradients
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.decoding import decoding_bytes
from allo_engine.model.loading import recompute_activations
from allo_engine.model.logps import computing, token_logps
from allo_engine.model.memory import Kind, Use, held_bytes, row_bytes
from allo_engine.model.sequences import Group, build_row, singles
from allo_engine.model.shape import Shape, shape_in_memory
from allo_engine.sampling import Request, Settings, TransformersSampler
from tests.benchmarks.case import Case, torch_version

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
    "small": {
        "model_type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 32768, "tie_word_embeddings": True,
    },
    "small, untied": {
        "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 16,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip


MASK = 0.05

NEW_TOKENS = 512
"""Tokens that a decoded row has room for behind its prompt."""

Peak = tuple[int, int]
"""Bytes that are held, and bytes that a row or decoding adds to them."""


@dataclass(frozen=True)
class Measured:
    """A use of a shape: the tokens of its row, or where `rows` are decoded, of each row's prompt."""

    shape: str
    use: Use
    tokens: int
    rows: int = 0

    @property
    def name(self) -> str:
        use = self.use
        again = ", activations twice" if use.checkpointing else ""
        what = f"{self.rows} rows decoded" if self.rows else f"{use.kind}{again}"
        return f"{self.shape}, {what}, {8 * use.weight_bytes} bit, {self.tokens} tokens"

    @cached_property
    def config(self) -> Any:
        return AutoConfig.for_model(**SHAPES[self.shape])

    def predicted(self) -> Peak:
        with torch.device("meta"):
            shape = shape_in_memory(AutoModelForCausalLM.from_config(self.config))  # type: ignore[no-untyped-call]
        return held_bytes(shape, self.use), self._added(shape)

    def _added(self, shape: Shape) -> int:
        if self.rows:
            length = self.tokens + NEW_TOKENS - 1
            return decoding_bytes(shape, self.use, self.rows, length, self.rows * (self.tokens - 1))
        return row_bytes(shape, self.use, self.tokens)

    def measured(self) -> Peak:
        narrow = self.use.weight_bytes == 2 and self.use.kind != "dense"
        model = _filled(self.config, torch.bfloat16 if narrow else torch.float32)
        held = _bytes(model.parameters())
        if self.rows:
            return held, _decoding(model, self.rows, self.tokens)
        model.set_attn_implementation(NAME)
        groups = [singles(0, [5], [[7] * self.tokens])]
        _logps(model, [singles(0, [5], [[7] * 4])])  # what is found out once
        if self.use.kind == "forward":
            return held, peak(partial(_logps, model, groups))
        if self.use.checkpointing:
            recompute_activations(model)
        if self.use.kind == "gradient":
            sums = 4 * sum(weight.numel() for weight in model.parameters())
            return held + sums, peak(lambda: summed_gradients(model, groups, self.tokens, lambda _: None)) - sums
        return _training(model, self.use, groups)


def _filled(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Weights that are soon drawn: what they are changes no size."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    for weight in model.parameters():
        weight.data.uniform_(-0.1, 0.1)
    model.tie_weights()  # type: ignore[no-untyped-call]
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


@torch.no_grad()
def _logps(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    return token_logps(model, build_row(groups))


def _decoding(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Every response ends with its first token; it is looked for among few, then in the whole vocabulary."""
    sampler = TransformersSampler(model, free_bytes=1 << 50)
    assert sampler.in_place
    ends = tuple(range(model.config.vocab_size))
    settings = Settings(ends, temperature=1.0, top_p=0.95, rows=rows)
    requests = [Request(number, [number, *[7] * (tokens - 1)], 0, NEW_TOKENS) for number in range(rows)]
    return peak(lambda: list(sampler.sample(requests, settings)))


def _training(model: PreTrainedModel, use: Use, groups: list[Group]) -> Peak:
    """A step's row, with parameters, gradients and moments as a Trainer holds them."""
    parameters: list[nn.Parameter] = list(model.parameters())
    held = _bytes(parameters)
    if use.kind == "sparse":
        places = {name: np.arange(0, weight.numel(), round(1 / MASK)) for name, weight in model.named_parameters()}
        sparse = SparseModel(model, {n: (p, np.zeros(len(p), np.float32)) for n, p in places.items()})
        parameters = list(sparse.values.values())
        held += _bytes(parameters) + sum(4 * len(place) for place in places.values())
    for weight in parameters:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    optimizer.step()
    held += _bytes(weight.grad for weight in parameters if weight.grad is not None)
    held += sum(_bytes(v for k, v in state.items() if k != "step") for state in optimizer.state.values())

    def step() -> None:
        with computing(model, "bfloat16" if use.weight_bytes == 2 else "float32"):
            logps = token_logps(model, build_row(groups))
        logps.sum().backward()  # type: ignore[no-untyped-call]

    return held, peak(step)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that are live in torch's allocator while work runs, beyond those that were before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    found = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in found]).max(initial=0))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _training_uses(widths: tuple[int, ...] = (4, 2)) -> list[Use]:
    kinds: tuple[tuple[Kind, float], ...] = (("sparse", MASK), ("dense", 1.0), ("gradient", 1.0))
    return [
        Use(kind, width, ratio, checkpointing=again)
        for kind, ratio in kinds
        for width in widths
        for again in ((False,) if kind == "gradient" else (False, True))
    ]


def everything() -> list[Measured]:
    forward = [Use("forward", width) for width in (4, 2)]
    rows = [Measured(shape, use, 1024) for shape in SHAPES for use in (*forward, *_training_uses())]
    return rows + [Measured(shape, use, 48, rows=12) for shape in SHAPES for use in forward]


CHOSEN = (
    Measured("SmolLM2-135M", Use("forward", 2), 512),
    Measured("SmolLM2-135M", Use("sparse", 2, MASK), 512),
    Measured("SmolLM2-135M", Use("dense", 2), 512),
    Measured("SmolLM2-135M", Use("dense", 2, checkpointing=True), 256),
    Measured("SmolLM2-135M", Use("gradient", 4), 256),
    Measured("SmolLM2-135M", Use("forward", 4), 48, rows=12),
    Measured("Qwen3, 31M", Use("dense", 2), 512),
    Measured("Qwen3, 31M", Use("dense", 4), 512),
    Measured("Qwen3, 31M", Use("sparse", 4, MASK, checkpointing=True), 512),
    Measured("Llama, 230M, untied", Use("dense", 2), 256),
    Measured("Llama, 230M, untied", Use("dense", 2, checkpointing=True), 256),
    Measured("Llama, 230M, untied", Use("gradient", 2), 256),
    Measured("Qwen2.5-0.5B", Use("sparse", 2, MASK), 128),
    Measured("Qwen2.5-0.5B", Use("dense", 2), 128),
    Measured("Qwen2.5-0.5B", Use("forward", 2), 32, rows=8),
)
"""Few, small and unlike, for all three minutes that they take on one thread."""


def predicted() -> dict[str, float]:
    return {name: size for case in CHOSEN for name, size in _figures(case, case.predicted())}


def measured() -> dict[str, float]:
    return {name: size for case in CHOSEN for name, size in _figures(case, case.measured())}


def _figures(case: Measured, found: Peak) -> list[tuple[str, float]]:
    """Of what is added, and of the whole peak, in MiB."""
    held, added = found
    return [(f"{case.name}: added", added / 2**20), (f"{case.name}: in all", (held + added) / 2**20)]


CASES = tuple(
    Case(
        f"{name}, MiB",
        predicted,
        measured,
        torch_version("measured"),
        goal=0.1,
        higher_is_better=None,
        limit="",
        figure=name,
    )
    for case in CHOSEN
    for name, _ in _figures(case, (0, 0))
)


def main(numbers: list[int]) -> None:
    for number, case in enumerate(everything()):
        if not numbers or number in numbers:
            formula, seen = case.predicted(), case.measured()
            pairs = (*zip(formula, seen, strict=True), (sum(formula), sum(seen)))
            print(f"{number:>2} {case.name:<60}", *(_compared(*pair) for pair in pairs), sep="   ", flush=True)


def _compared(formula: int, seen: int) -> str:
    return f"{formula / 2**20:8.1f} {seen / 2**20:8.1f} ({formula / seen - 1:+6.1%})"


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
