"""Which stages of a job fit a device, from a model's config.json alone: no weights, no device.

    python -m allo_engine.estimate fit MODEL --device-gb 24                  a table
    python -m allo_engine.estimate fit MODEL --device-gb 24 --ratio 0.03     masks of 3 % of all weights
    python -m allo_engine.estimate fit MODEL --device-gb 24 --devices 8      and with what ZeRO shares out among eight
    python -m allo_engine.estimate fit MODEL --device-gb 24 --json           the same as JSON, in bytes

MODEL is a folder that holds config.json, or such a file. Weights are counted on a model of its class that is never
filled, so any architecture of transformers will do. A stage fits where rows of 2,048 tokens do, with activations
computed twice if need be (memory.py has the formulas).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from allo_engine.model.decoding import decoding_bytes
from allo_engine.model.memory import (
    CONTEXT_BYTES_ELSEWHERE,
    SMALLEST_ROW,
    SPARE,
    Use,
    cache_bytes,
    held_bytes,
    row_bytes,
    row_tokens,
    token_bytes,
)
from allo_engine.model.shape import Shape, shape_in_memory

SENSIBLE = 2048
"""Tokens of a row with which a device is busy."""

TRAINED = ("sft", "warmup", "reward_model", "forget", "improve")


@dataclass(frozen=True)
class Fit:
    """A stage in one way to train it. Bytes are the device's; `longest` is the longest row that fits, 0 where none
    does; `checkpointing` says that activations are computed twice for it.
    """

    stage: str
    train: str
    held_bytes: int
    token_bytes: int
    longest: int
    checkpointing: bool
    fits: bool


def shape_by_config(model: Path) -> Shape:
    """A model's shape from its config.json, in a folder or by itself.

    Raises OSError, ValueError or KeyError where that names no causal language model of transformers.
    """
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return shape_in_memory(empty)


def fits(shape: Shape, device_bytes: int, ratio: float, devices: int = 1) -> Iterator[Fit]:
    """Every stage that holds a model, in every way to train it, on accelerators of so many bytes each, in 16 bits."""
    room = device_bytes - CONTEXT_BYTES_ELSEWHERE
    forward = Use("forward", 2, device_type="cuda")
    yield _decoding(shape, forward, room)
    yield _fit(shape, "locate by gradient", "", replace(forward, kind="gradient"), room)
    yield _fit(shape, "locate by gradient", "sums on the host", replace(forward, kind="gradient_on_host"), room)
    yield _fit(shape, "token_rewards, evaluate", "", forward, room)
    for stage in TRAINED:
        for mode, use in _modes(forward, ratio, devices):
            yield _fit(shape, stage, mode, use, room)


def _modes(forward: Use, ratio: float, devices: int) -> Iterator[tuple[str, Use]]:
    """Every way to train, with its name."""
    dense = replace(forward, kind="dense", devices=devices)
    yield "all", dense
    if devices > 1:
        for zero in (1, 2, 3):
            yield f"all, zero {zero}", replace(dense, zero=zero)
        yield "all, zero 3, offload", replace(dense, zero=3, offload=True)
    yield "all, moments 8bit", replace(dense, moments="8bit")
    sparse = replace(forward, kind="sparse", ratio=ratio, devices=devices)
    yield "mask", sparse
    if devices > 1:
        yield "mask, zero 3", replace(sparse, zero=3)


def _fit(shape: Shape, stage: str, train: str, use: Use, room: int) -> Fit:
    """Without computing activations twice where rows of a sensible length fit so, else with it."""
    plain = _longest(shape, use, room)
    if plain < SENSIBLE and use.training:
        use = replace(use, checkpointing=True)
    longest = _longest(shape, use, room)
    return Fit(
        stage, train, held_bytes(shape, use), token_bytes(shape, use), longest, use.checkpointing, longest >= SENSIBLE
    )


def _longest(shape: Shape, use: Use, room: int) -> int:
    longest = row_tokens(shape, use, room)
    enough = held_bytes(shape, use) + row_bytes(shape, use, longest) <= SPARE * room
    return longest if enough or longest > SMALLEST_ROW else 0


def _decoding(shape: Shape, use: Use, room: int) -> Fit:
    """`longest` is the tokens that a batch may hold in its cache, beside prompts of a sensible length."""
    held = held_bytes(shape, use)
    a_token = cache_bytes(shape, use.weight_bytes)
    left = SPARE * room - held - decoding_bytes(shape, use, 1, 0, SENSIBLE)
    longest = max(0, int(left // a_token))
    return Fit("sample, evaluate", "", held, a_token, longest, False, longest >= SENSIBLE)


def table_of(found: list[Fit], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("stage", "train", "held", "a token", "longest row", "activations", f"rows of {SENSIBLE:,}"):
        table.add_column(name, justify="left" if name in ("stage", "train", "activations") else "right")
    for fit in found:
        table.add_row(
            fit.stage,
            fit.train,
            f"{fit.held_bytes / 2**30:.2f} GiB",
            f"{fit.token_bytes / 1024:,.0f} KiB",
            f"{fit.longest:,}" if fit.longest else "none",
            "twice" if fit.checkpointing else "",
            "yes" if fit.fits else "no",
        )
    table.caption = "Of sample, 'longest row' is what a batch may hold in its cache."
    return table


def main(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    try:
        shape = shape_by_config(given.model)
    except (OSError, ValueError, KeyError) as error:
        print(f"{given.model} names no causal language model: {error}", file=sys.stderr)  # noqa: T201
        return 2
    found = list(fits(shape, round(given.device_gb * 2**30), given.ratio, given.devices))
    if given.json:
        print(json.dumps({"shape": asdict(shape), "stages": [asdict(fit) for fit in found]}, indent=2))  # noqa: T201
    else:
        device = f"{given.devices} × {given.device_gb:g} GiB" if given.devices > 1 else f"{given.device_gb:g} GiB"
        title = f"{shape.weights / 1e9:.2f} B weights on {device}, masks of {given.ratio:.1%}"
        Console().print(table_of(found, title))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.estimate fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder with config.json, or such a file")
    parser.add_argument("--device-gb", required=True, type=float, metavar="GIB", help="the accelerator's memory")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="accelerators of a stage (1)")
    parser.add_argument("--ratio", type=float, default=0.05, help="the masks' share of all weights (0.05)")
    parser.add_argument("--json", action="store_true", help="answer with JSON: bytes and tokens")
    return parser
