"""What several GPUs would take, on paper: python -m tests.benchmarks.paper prints a table and what it rests on.

Nothing here is measured: there was no such machine. It is arithmetic on the hardware's own figures, so that a reader
can put in others, and so that a measurement has something to be held against.

A step of S tokens a GPU (a batch is shared whole: rows of a batch go to the GPUs, which then sum their gradients):

    compute    6·N·S FLOPs; 8·N·S where activations are computed twice. A mask saves none: the gradient of every weight
               is computed before its masked entries are gathered.
    memory     HBM reads the weights forward, once more where activations are computed twice, and backward, and writes
               and reads their gradients: 5 passes of 2·N bytes a row, whatever S. AdamW moves 28 bytes a trained value;
               a masked one's write into its weight moves a sector of 32 bytes, there and back.
    exchange   masked: an all-reduce of 4·ρ·N bytes, behind the backward pass. Each GPU sends 2·(P−1)/P of that over
               NVLink; over InfiniBand each of the 8 rails carries an eighth of a node's share, 2·(n−1)/n of an eighth.
               sharded weights (ZeRO-3): all-gather of 2·N forward, again backward, and for dense training a
               reduce-scatter of 2·N: (P−1)/P of each, over the rails an eighth of it. It runs beside the compute,
               where the compute is long enough.
    held       masked: 2 + 20·ρ bytes a weight; with frozen weights sharded 2/P + 20·ρ; dense ZeRO-3: 16/P. And a row's
               activations, computed twice, with what stands gathered beside them: the engine's own formulas
               (model/memory.py), but for dense ZeRO-3.

The step is the longest of compute, HBM and the exchange that runs beside them, and then the exchange that does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from allo_engine.model.memory import Use, held_bytes, row_bytes, row_tokens
from allo_engine.model.shape import Shape

PEAK_FLOPS, MFU = 989e12, 0.40
"""An H100 SXM's bfloat16 without sparsity, and the share of it that training is taken to reach."""

HBM, NVLINK, INFINIBAND = 3.35e12, 450e9, 50e9
"""Bytes a second: of memory, of a GPU's links in a node in one direction, of its 400 Gb/s adapter in one direction."""

REACHED = 0.8
"""The share of a link's bandwidth that collectives reach for hundreds of megabytes."""

CAPACITY = 80e9
NODE = 8
RATIO = 0.03

MODELS = {
    "8 B": Shape(8_030_000_000, 16_060_000_000, 32, 4096, 14336, 32, 8, 128, 128256, False, 128256 * 4096),
    "70 B": Shape(70_550_000_000, 141_100_000_000, 80, 8192, 28672, 64, 8, 128, 128256, False, 128256 * 8192),
}
"""Llama 3's."""

BATCHES = {"short (128 pairs of 100 tokens)": 12_800, "long (128 pairs of 1,000 tokens)": 128_000}
"""Tokens of a batch: ECQA's pairs, which share their prompts, and a chat's."""


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts, bytes that a GPU sends over each kind of link, bytes that it holds."""

    compute: float
    memory: float
    beside: float
    behind: float
    nvlink_bytes: float
    infiniband_bytes: float
    held: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.beside) + self.behind

    @property
    def saturates(self) -> str:
        """The part that the step waits for longest."""
        exchange = "InfiniBand" if self.infiniband_bytes / INFINIBAND > self.nvlink_bytes / NVLINK else "NVLink"
        parts = {"tensor cores": self.compute, "HBM": self.memory, exchange: self.beside + self.behind}
        return max(parts, key=lambda part: parts[part])


def step(shape: Shape, gpus: int, tokens: int, masked: bool, sharded: bool) -> Step:
    """A step over a batch of `tokens`; `sharded` says that no GPU holds all weights."""
    own, weights = tokens / gpus, shape.weights
    use = Use("sparse", 2, RATIO, checkpointing=True, device_type="cuda")  # the rows of 16-bit weights are alike
    row = min(own, 8192)
    if masked and sharded:
        use = replace(use, zero=3, devices=gpus)
        row = min(row, row_tokens(shape, use, round(CAPACITY)))
    rows = own / row
    trained = RATIO * weights if masked else weights / gpus
    moved = rows * 5 * 2 * weights + trained * (28 + (64 if masked else 0))
    gathers = rows * (2 if masked else 3) * 2 * weights if sharded else 0.0
    summed = 4 * RATIO * weights if masked else 0.0
    held = held_bytes(shape, use) if masked else 16 / gpus * weights + 2 * (2 * weights / shape.layers)
    beside, behind = (_links(gathers, 1, gpus), _links(summed, 2, gpus))
    return Step(
        compute=8 * weights * own / (MFU * PEAK_FLOPS),
        memory=moved / HBM,
        beside=_seconds(*beside),
        behind=_seconds(*behind),
        nvlink_bytes=beside[0] + behind[0],
        infiniband_bytes=beside[1] + behind[1],
        held=held + row_bytes(shape, use, round(row)),
    )


def _links(size: float, passes: int, gpus: int) -> tuple[float, float]:
    """Bytes that a GPU sends over NVLink and over its adapter to bring `size` bytes around so many times."""
    nodes = gpus // NODE
    return passes * size * (NODE - 1) / NODE, passes * size / NODE * (nodes - 1) / nodes


def _seconds(nvlink: float, infiniband: float) -> float:
    return max(nvlink / NVLINK, infiniband / INFINIBAND) / REACHED


PLANS = (
    ("masked 3 %, whole weights", True, False),
    ("masked 3 %, frozen weights sharded", True, True),
    ("dense, ZeRO-3", False, True),
)


def table() -> str:
    """Markdown."""
    lines = [
        "| model | GPUs | batch | how | step | compute | HBM | exchange beside / behind | sent a GPU: NVLink / IB "
        "| held a GPU | saturates first |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in MODELS.items():
        for gpus in (8, 32):
            for batch, tokens in BATCHES.items():
                for how, masked, sharded in PLANS:
                    found = step(shape, gpus, tokens, masked, sharded)
                    fits = "" if found.held <= CAPACITY else ", does not fit"
                    lines.append(
                        f"| {name} | {gpus} | {batch.split()[0]} | {how} | {_ms(found.seconds)} | {_ms(found.compute)} "
                        f"| {_ms(found.memory)} | {_ms(found.beside)} / {_ms(found.behind)} "
                        f"| {_gb(found.nvlink_bytes)} / {_gb(found.infiniband_bytes)} | {_gb(found.held)}{fits} "
                        f"| {found.saturates} |"
                    )
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


if __name__ == "__main__":
    print(table())
