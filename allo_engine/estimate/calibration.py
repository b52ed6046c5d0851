"""How fast this machine is: measured once, in seconds, with the engine's own passes, and kept for estimates.

    python -m allo_engine.estimate.calibration            what is known of this machine; measured if nothing is
    python -m allo_engine.estimate.calibration --again    measured anew: after a change of the machine
    python -m allo_engine.estimate.calibration --json     the rates as a line of JSON, as a worker asks for them

A small randomly initialised Llama does what the stages do: rows through `token_logps`, forward and backward; AdamW;
`Sampler.sample`. Rates are per FLOP, byte or weight, so that they hold for other models. Kept in
$XDG_CACHE_HOME/allo/calibration.json, by device, version of torch and number of threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as stages run: before torch
os.environ.setdefault("TQDM_DISABLE", "1")

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from allo_engine.estimate.rates import TRAINING, Calibration, flops, processor
from allo_engine.forks import leave
from allo_engine.model.attention import attended
from allo_engine.model.loading import device, dtype_of, load_model
from allo_engine.model.logps import computing, token_logps
from allo_engine.model.sequences import build_row, singles
from allo_engine.model.shape import Shape, shape_of
from allo_engine.sampling import Request, Settings, TransformersSampler

REPEATS = 3
"""Each figure is the median of so many measurements."""

Size = tuple[int, int, int, int, int]
"""Of hidden states and of the layers between, heads, heads of keys and values, vocabulary."""

WIDE: Size = (576, 1536, 9, 3, 8192)
NARROW: Size = (64, 128, 2, 2, 256)
"""What is measured: a small language model's layers, and layers so small that only their overhead takes time."""

LAYERS = 4
"""Layers of the models that are measured."""

ROWS = 64
"""Decoding is measured with one row and with so many."""

STEPS = 8
"""Steps of decoding that are measured."""

PEAKED = 0.01
"""A temperature at which an untrained model's next token is as certain as a trained one's: nuclei are small."""

FILE_BYTES = 2**26
"""The file that is written and hashed."""


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allo" / "calibration.json"


def machine() -> str:
    """What a calibration holds for: device, version of torch, threads."""
    name = torch.cuda.get_device_name() if device().type == "cuda" else f"{device().type} {processor()}"
    return f"{name} / torch {torch.__version__} / {torch.get_num_threads()} threads"


def _kept(path: Path) -> dict[str, Calibration]:
    """The calibrations in a file, without those that are damaged or of another version of this module."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return {key: found for key, rates in written.items() if (found := Calibration.read(rates))}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(path: Path, calibrations: dict[str, Calibration]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({key: asdict(values) for key, values in calibrations.items()}, indent=2))
    aside.replace(path)


def measure(size: Size = WIDE) -> Calibration:
    """Measure this machine with a model of this size, in some ten seconds."""
    with tempfile.TemporaryDirectory() as root:
        wide = _untrained(Path(root) / "wide", size)
        narrow = _untrained(Path(root) / "narrow", NARROW)
        shape = shape_of(wide)
        forward, training, optimizer = _passes(load_model(wide), shape)
        small, model = (load_model(folder, dtype_of("auto")) for folder in (narrow, wide))
    layer = _step_seconds(small, 1) / LAYERS
    one, many = _step_seconds(model, 1), _step_seconds(model, ROWS)
    a_row = max(many - one, 0.1 * many) / (ROWS - 1)
    reading = max(one - layer * LAYERS, 0.1 * one)
    write, sha256 = _file_rates()
    return Calibration(
        forward_flops=forward,
        training_flops=training,
        decoding_flops=2 * shape.weights / a_row,
        decoding_bytes=model.dtype.itemsize * shape.weights / reading,
        layer_seconds=layer,
        optimizer_weights=optimizer,
        write_bytes=write,
        hash_bytes=sha256,
    )


def _untrained(folder: Path, size: Size) -> Path:
    hidden, intermediate, heads, kv_heads, vocabulary = size
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def _passes(model: PreTrainedModel, shape: Shape) -> tuple[float, float, float]:
    """FLOP/s of a forward pass and of a training pass, weights/s of an optimizer step.

    The row is eight short problems on a CPU; an accelerator wants more at once to be busy.
    """
    problems = 8 if device().type == "cpu" else 64
    row = build_row([singles(n, [n + 9] * 48, [[n + 10] * 17]) for n in range(problems)], model.device)
    tokens, scored = row.ids.numel(), len(row.targets)
    work = flops(shape, tokens, attended(row.ends), scored)

    def loss() -> Tensor:
        with computing(model, "auto"):
            return token_logps(model, row).sum()

    with torch.no_grad():
        forward = _seconds(loss)
    training = _seconds(lambda: loss().backward())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return work / forward, TRAINING * work / training, shape.weights / _seconds(step)


def _step_seconds(model: PreTrainedModel, rows: int) -> float:
    """Seconds of one step of decoding with so many rows, drawn as `sample` draws."""
    sampler = TransformersSampler(model)
    settings = Settings(ends=(), temperature=PEAKED, top_p=0.95, rows=rows)

    def decode(tokens: int) -> float:
        requests = [Request(0, [5, 6, 7, 8], 0, tokens, range(rows))]
        return _seconds(lambda: list(sampler.sample(requests, settings)))

    return max(decode(STEPS + 1) - decode(1), 1e-6) / STEPS


def _file_rates() -> tuple[float, float]:
    """Bytes/s written down to the disk, and bytes/s of sha256."""
    content = os.urandom(FILE_BYTES)

    def write() -> None:
        with tempfile.TemporaryFile() as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    return FILE_BYTES / _seconds(write), FILE_BYTES / _seconds(lambda: hashlib.sha256(content).digest())


def _seconds(work: Callable[[], object]) -> float:
    """The median of several measurements, behind one that is thrown away."""
    taken = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def calibrated(
    path: Path | None = None, again: bool = False, measured: Callable[[], Calibration] = measure
) -> Calibration:
    """This machine's calibration: the one that was kept, else a new one, which is kept."""
    path = path or cache_file()
    kept = _kept(path)
    key = machine()
    if key not in kept or again:
        kept[key] = measured()
        _keep(path, kept)
    return kept[key]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.estimate.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--again", action="store_true", help="measure even where a calibration is kept")
    parser.add_argument("--json", action="store_true", help="answer with the rates alone, as a line of JSON")
    given = parser.parse_args(arguments)
    calibration = calibrated(again=given.again)
    if given.json:
        print(json.dumps(asdict(calibration)))  # noqa: T201
        return 0
    print(machine())  # noqa: T201 - this is the command's answer
    for field in fields(calibration):
        print(f"  {field.name:<18} {getattr(calibration, field.name):.3g}")  # noqa: T201
    print(f"kept in {cache_file()}")  # noqa: T201
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
