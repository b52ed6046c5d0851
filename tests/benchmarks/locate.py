"""Locating: against concatenating and torch.topk, and at a size that such a rival could not hold."""

from __future__ import annotations

import atexit
import io
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from allo_engine.config import LocateConfig
from allo_engine.report import Report
from allo_engine.stages import locate
from tests.benchmarks import material
from tests.benchmarks.case import Case, torch_version

MASK = 0.05

LAYERS = 24
LAYERS_A_SHARD = 3
SHAPES = {
    "mlp.down_proj": (2048, 5632),
    "mlp.gate_proj": (5632, 2048),
    "mlp.up_proj": (5632, 2048),
    "self_attn.k_proj": (256, 2048),
    "self_attn.o_proj": (2048, 2048),
    "self_attn.q_proj": (2048, 2048),
    "self_attn.v_proj": (256, 2048),
}
"""A layer as that of a model of 1.1 B weights."""

LAYER_WEIGHTS = sum(rows * columns for rows, columns in SHAPES.values())
BUDGET = 600e6
REPEATS = 2


def ours(before: Path, after: Path) -> float:
    """Seconds from stored weights to stored masks."""
    with tempfile.TemporaryDirectory() as work:
        began = time.perf_counter()
        inputs = {"model": before, "updated": after}
        locate.run(LocateConfig(), inputs, Path(work) / "out", Path(work), Report(io.StringIO()))
        return time.perf_counter() - began


# --- a real small model


def moved_model(work: Path) -> None:
    """A second checkpoint, a small random step away from the first."""
    random = np.random.default_rng(1)
    tensors = load_file(material.model() / "model.safetensors")
    save_file(
        {n: t + 1e-6 * random.standard_normal(t.shape, dtype=np.float32) for n, t in tensors.items()},
        work / "model.safetensors",
    )


def in_moved(measure: Callable[[Path], Any]) -> float:
    with tempfile.TemporaryDirectory() as work:
        moved_model(Path(work))
        began = time.perf_counter()
        measure(Path(work))
        return time.perf_counter() - began


def ours_locate() -> float:
    model = material.model()
    return in_moved(lambda work: ours(model, work))


def topk_locate() -> float:
    model = material.model()

    def measure(work: Path) -> None:
        before, after = load_file(model / "model.safetensors"), load_file(work / "model.safetensors")
        update = torch.cat([torch.from_numpy(np.abs(after[name] - before[name])).flatten() for name in sorted(before)])
        mask = torch.zeros(len(update), dtype=torch.bool)
        mask[update.topk(int(len(update) * MASK)).indices] = True
        save_file({"mask": np.packbits(mask.numpy())}, work / "mask.safetensors")

    return in_moved(measure)


# --- more than a billion weights


@cache
def checkpoints(layers: int) -> tuple[Path, Path]:
    """Two float32 checkpoints of so many layers, made in a process of its own and deleted when this one ends."""
    root = Path(tempfile.mkdtemp(prefix="allo-bench-"))
    atexit.register(shutil.rmtree, root)
    maker = multiprocessing.get_context("spawn").Process(target=make_checkpoints, args=(root, layers))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    return root / "before", root / "after"


def make_checkpoints(root: Path, layers: int) -> None:
    """Normal numbers, the same few millions over and over, with a scale and an update's scale for each tensor."""
    random = np.random.default_rng(0)
    weights, steps = (random.standard_normal(3_000_017, dtype=np.float32) for _ in range(2))
    files = {}
    for first in range(0, layers, LAYERS_A_SHARD):
        before, after = {}, {}
        for layer in range(first, first + LAYERS_A_SHARD):
            for module, shape in SHAPES.items():
                name = f"model.layers.{layer}.{module}.weight"
                before[name] = np.resize(weights, shape) * np.float32(random.uniform(0.01, 0.1))
                after[name] = before[name] + np.resize(steps, shape) * np.float32(random.uniform(0.5e-6, 2e-6))
        file = f"model-{first:05d}.safetensors"
        files |= dict.fromkeys(before, file)
        for folder, tensors in (("before", before), ("after", after)):
            (root / folder).mkdir(exist_ok=True)
            save_file(tensors, root / folder / file)
    for folder in ("before", "after"):
        (root / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    os.sync()


def extra_memory() -> float:
    """Peak memory of locating in over a billion weights, over what the process had after its imports, bytes."""
    folders = checkpoints(LAYERS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(*folders)
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def seconds_a_weight(layers: int) -> float:
    """The best of a few runs."""
    folders = checkpoints(layers)
    return min(ours(*folders) for _ in range(REPEATS)) / (layers * LAYER_WEIGHTS)


SIZE = f"{LAYERS * LAYER_WEIGHTS / 1e9:.2f} B weights"

CASES: tuple[Case, ...] = (
    Case(
        "locate, s from stored weights to stored mask",
        ours_locate,
        topk_locate,
        torch_version("concatenate + topk"),
        goal=0.125,
        higher_is_better=False,
        limit="two checkpoints read twice: 16 bytes a weight, 2.2 GB, at 10 GB/s a core from the page cache",
    ),
    Case(
        f"locate, extra peak bytes, {SIZE}",
        extra_memory,
        lambda: BUDGET,
        lambda: "a budget of 600 MB",
        goal=1.0,
        higher_is_better=False,
        limit="1 MB of counts, a few buffers of 0.5 MB a thread, and the interpreter's own",
    ),
    Case(
        f"locate, s a weight, {SIZE}",
        lambda: seconds_a_weight(LAYERS),
        lambda: seconds_a_weight(LAYERS // 8),
        lambda: "ours, at an eighth of the size",
        goal=1.25,
        higher_is_better=False,
        limit="two checkpoints read twice: 16 bytes a weight; from disk where the page cache cannot hold them",
    ),
)
