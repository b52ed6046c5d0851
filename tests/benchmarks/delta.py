"""The sparse checkpoint against 16-bit weights in bytes, and against the disk in time."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from allo_engine.checkpoints.delta import FILE, Values, merge, write_delta
from allo_engine.config import ImproveConfig
from tests.benchmarks import material
from tests.benchmarks.case import Case

MASK = 0.05
STEPS = 50
WARMUP = 5


def trained_values(learning_rate: float) -> Values:
    """A random mask's entries as AdamW leaves them."""
    random = np.random.default_rng(0)
    values = {}
    for name, weight in load_file(weights()).items():
        flat = weight.reshape(-1)
        positions = np.flatnonzero(random.random(len(flat), dtype=np.float32) < MASK)
        values[name] = positions, adam(flat[positions], learning_rate, random)
    return values


def adam(start_K: NDArray[np.float32], peak: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Entries after AdamW without decay, warm-up and cosine; gradients are a mean of each entry's own and equal noise.

    Means as large as the noise make long steps: what a mask of the most moved weights selects.
    """
    values_K, first_K, second_K = start_K.copy(), np.zeros_like(start_K), np.zeros_like(start_K)
    mean_K = random.standard_normal(len(start_K), dtype=np.float32)
    for step in range(1, STEPS + 1):
        gradient_K = mean_K + random.standard_normal(len(start_K), dtype=np.float32)
        first_K += np.float32(0.1) * (gradient_K - first_K)
        second_K += np.float32(0.001) * (gradient_K * gradient_K - second_K)
        done = (step - WARMUP) / (STEPS - WARMUP)
        rate = peak * (step / WARMUP if step < WARMUP else (1 + math.cos(math.pi * done)) / 2)
        rate *= math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        values_K -= np.float32(rate) * first_K / (np.sqrt(second_K) + np.float32(1e-8))
    return values_K


def weights() -> Path:
    return material.model() / "model.safetensors"


def ours_bytes(learning_rate: float) -> float:
    with tempfile.TemporaryDirectory() as work:
        write_delta(trained_values(learning_rate), weights().parent, Path(work))
        return float((Path(work) / FILE).stat().st_size)


def half_precision_bytes() -> float:
    return 2.0 * sum(weight.size for weight in load_file(weights()).values())


def ours_write() -> float:
    """Bytes of the float32 checkpoint that a second of writing the delta stands for, on disk at its end."""
    values, base = trained_values(ImproveConfig().learning_rate), weights()
    with tempfile.TemporaryDirectory() as work:
        return base.stat().st_size / seconds(lambda: write_delta(values, base.parent, Path(work)))


def ours_merge() -> float:
    """Bytes of weights and delta read, and of weights written and flushed to disk, a second."""
    values, base = trained_values(ImproveConfig().learning_rate), weights()
    with tempfile.TemporaryDirectory() as work:
        delta, out = Path(work) / "delta", Path(work) / "merged"
        write_delta(values, base.parent, delta)
        taken = seconds(lambda: merge(base.parent, delta, out))
        read = base.stat().st_size + (delta / FILE).stat().st_size
        return (read + (out / base.name).stat().st_size) / taken


def half_of_the_disk() -> float:
    """Half of the bytes a second of a plain sequential write of as many bytes, flushed to disk."""
    piece = os.urandom(1 << 24)
    count = -(-weights().stat().st_size // len(piece))

    def write() -> None:
        with (Path(work) / "plain").open("wb", buffering=0) as file:
            for _ in range(count):
                file.write(piece)
            os.fsync(file.fileno())

    with tempfile.TemporaryDirectory() as work:
        return count * len(piece) / seconds(write) / 2


def seconds(measured: Callable[[], None]) -> float:
    os.sync()  # what was written before is not waited for while measuring
    began = time.perf_counter()
    measured()
    return time.perf_counter() - began


def bytes_case(name: str, learning_rate: float) -> Case:
    return Case(
        f"sparse checkpoint of a 5 % mask, bytes, {name}",
        lambda: ours_bytes(learning_rate),
        half_precision_bytes,
        lambda: "bf16 safetensors",
        goal=0.08,
        higher_is_better=False,
        limit=f"float32 exact; random mask; values moved by {STEPS} simulated AdamW steps at {learning_rate:g}",
    )


CASES: tuple[Case, ...] = (
    bytes_case("improve's learning rate", ImproveConfig().learning_rate),
    bytes_case("five times it", 5 * ImproveConfig().learning_rate),
    Case(
        "sparse checkpoint, bytes of float32 weights stood for a second of writing",
        ours_write,
        half_of_the_disk,
        lambda: "half of the disk's measured write rate",
        goal=1.0,
        higher_is_better=True,
        limit="sha256 of the base and deflate; the base in the page cache",
    ),
    Case(
        "merging, bytes read and written a second",
        ours_merge,
        half_of_the_disk,
        lambda: "half of the disk's measured write rate",
        goal=1.0,
        higher_is_better=True,
        limit="the disk; sha256 of the base; the base in the page cache",
    ),
)
