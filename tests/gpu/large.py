"""The benchmarks' stages at a size that keeps a GPU busy; ours after a run that has all compiled, a rival after a small
one, which compiles nothing.

python -m tests.gpu.large improve ours 200 takes the pairs of 200 problems and prints one JSON object: tokens/s, the
peak of the device's memory in GB, and how often something was compiled while it was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch._dynamo.utils import counters

from allo_engine.model.loading import dtype_of, load_model
from allo_engine.sampling import TransformersSampler
from tests.benchmarks import material, pairs, sample

PAIRS, WARM = 5, 4
BATCH = 16
AT_ONCE = 64
"""Problems that are answered at once, ten times each."""


def drawn(problems: int) -> float:
    """Ours, tokens a second."""
    model, prompts = load_model(material.model(), dtype_of("auto")), material.chats(problems)
    requests = sample.of_problems(prompts)
    return sample.rate(TransformersSampler(model), requests, (sample.END,), AT_ONCE * sample.N)


def generated(problems: int) -> float:
    model, prompts = load_model(material.model(), dtype_of("auto")), material.chats(problems)
    return sample.generating(model, prompts, AT_ONCE)


MEASURES: Mapping[str, Mapping[str, Callable[[int], float]]] = {
    "improve": {"ours": partial(pairs.ours_improve, PAIRS)},
    "warmup": {"ours": partial(pairs.ours_warmup, PAIRS), "rival": partial(pairs.trl_dpo, PAIRS, at_once=BATCH)},
    "sample": {"ours": drawn, "rival": generated},
}
"""By measure and side, of a number of problems. Improving's rival is that of warm-up."""


def main(name: str, side: str, problems: str) -> None:
    measure = MEASURES[name][side]
    measure(int(problems) if side == "ours" else WARM)
    torch.cuda.reset_peak_memory_stats()
    compiled = counters["stats"]["unique_graphs"]
    pace = measure(int(problems))
    compiled = counters["stats"]["unique_graphs"] - compiled
    print(json.dumps({"tokens/s": pace, "peak GB": torch.cuda.max_memory_allocated() / 1e9, "compiled": compiled}))


if __name__ == "__main__":
    main(*sys.argv[1:])
