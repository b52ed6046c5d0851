"""What a process of two holds and how long a step takes it, in each stage of ZeRO: python -m tests.scale.measure

A Llama of 31 M weights in float32, rows of 256 tokens, two rows a step and process. Held is what tensors hold behind a
step's backward passes, by their storages; the buffer for what is exchanged apart.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from allo_engine.config import SftConfig
from allo_engine.forks import leave
from allo_engine.launching import Place, joined
from allo_engine.model.attention import NAME
from allo_engine.model.memory import ZERO_BUCKET, Use, held_bytes
from allo_engine.model.sequences import build_row, singles
from allo_engine.model.shape import shape_from
from allo_engine.ranks import here
from allo_engine.report import Report
from allo_engine.training.descent import Descent, Whole
from allo_engine.training.figures import Readings
from allo_engine.training.zero import Sharded

STEPS = 4
CONFIG = LlamaConfig(
    vocab_size=16384,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)


def model_of() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    model.set_attn_implementation(NAME)
    return model


def held() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
        tensors += [found.grad for found in tensors if found.is_leaf and found.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(zero: int, offload: bool) -> dict[str, float]:
    model, config = model_of(), SftConfig(offload=offload, precision="float32")
    parameters = dict(model.named_parameters())
    descent: Descent = Sharded(model, parameters, config, zero) if zero else Whole(model, parameters, config)
    source = random.Random(here().rank)
    ids = [source.randrange(5, 16384) for _ in range(256)]
    row = build_row([singles(0, ids[:16], [ids[16:]])])
    seconds, most = [], 0
    for _ in range(STEPS):
        began, readings = time.monotonic(), Readings()
        for _ in descent.even(iter(range(2))):
            loss = -descent.logps(row).mean()
            descent.backward(loss)
        readings.add({"loss": (loss, 1)})
        del loss
        paused = time.monotonic()
        gc.collect()
        most = max(most, held())
        began += time.monotonic() - paused
        descent.step(1e-5, readings)
        seconds.append(time.monotonic() - began)
    weights = {name: list(weight.shape) for name, weight in model_of().named_parameters()}
    shape = shape_from(CONFIG.to_dict(), weights, True)
    use = Use("dense", 4, zero=zero, devices=here().size, offload=offload)
    return {
        "zero": zero,
        "offload": offload,
        "weights": shape.weights,
        "bytes a weight": most / shape.weights,
        "bytes a weight by formula": (held_bytes(shape, use) - (4 * ZERO_BUCKET if zero else 0)) / shape.weights,
        "seconds a step": sorted(seconds)[len(seconds) // 2],
    }


def main() -> None:
    for zero, offload in ((0, False), (1, False), (2, False), (3, False), (2, True), (3, True)):
        with tempfile.TemporaryDirectory() as root:
            command = [sys.executable, "-m", "tests.scale.measure", root, str(zero), str(int(offload))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            for process in [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]:
                process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        with joined(Place(int(sys.argv[4]), 2, Path(sys.argv[1]) / "meeting"), Report(io.StringIO())):
            found = measure(int(sys.argv[2]), bool(int(sys.argv[3])))
            if here().leads:
                print(json.dumps(found), flush=True)
            here().barrier()
        leave(0)
