"""What is compared: the arms, each as the settings of a job, and the rates at which each is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.benchmarks.study.task import ARITHMETIC, SIZES, Task

Stages = dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class Scale:
    """A model to study with, on what, and how much of everything. `soft` has the rates of arms by what they train, at
    the published β, `firm` those of the arms whose β is FIRM. `locating` is the rate of the warm-up."""

    name: str
    model: str
    soft: Mapping[str, tuple[float, ...]]
    firm: Mapping[str, tuple[float, ...]]
    locating: float
    sft: Mapping[str, Any]
    seeds: int
    sizes: Mapping[str, int]
    n: int = 8
    pairs: int = 2
    batch: int = 16
    task: Task = ARITHMETIC
    precision: str = "float32"

    def rates(self, arm: str) -> tuple[float, ...]:
        rates = self.firm if ARMS[arm].firm else self.soft
        return rates[ARMS[arm].trains] if ARMS[arm].trains != "none" else (0.0,)


@dataclass(frozen=True)
class Arm:
    """`trains` is "dense" (all weights), "located" (those that a warm-up moves most), "gradient" (those of the largest
    gradient), "random" or, for SFT alone, "none". `stages` makes a job's settings from a rate;
    `row` is the line of the job's report that is the arm's model. `rounds` is how often it samples and aligns again;
    `firm` says that its β is FIRM."""

    what: str
    method: str
    trains: str
    row: str
    stages: Callable[[Scale, float], Stages]
    rounds: int = 1
    firm: bool = False


FIRM = 3.0
"""A β thirty times the published one: a pair stops pushing once it has moved by about a nat, as a whole."""

RATIO = 0.05

FORGET_SHARE = 0.1
"""The rate of forgetting as a share of improving's, as published (5e-7 and 5e-6)."""


def _supervised(epochs: int) -> Callable[[Scale, float], Stages]:
    return lambda scale, _: {"sft": {**scale.sft, "n_epochs": epochs * scale.sft["n_epochs"]}}


def _dense(nll: float = 0.0, **settings: Any) -> Callable[[Scale, float], Stages]:
    return lambda _, rate: {"warmup": {"learning_rate": rate, "nll": nll, **settings}}


def _masked(
    importance: str = "update", forgets: bool = False, nll: float = 0.0, **settings: Any
) -> Callable[[Scale, float], Stages]:
    """Improving in a mask; without a filter where `filter_ratio` is 1."""

    def stages(scale: Scale, rate: float) -> Stages:
        forgetting = {"token_rewards": {"source": "log_ratio"}, "forget": {"learning_rate": FORGET_SHARE * rate}}
        return {
            **({"warmup": {"learning_rate": scale.locating}} if importance == "update" else {}),
            "locate": {"importance": importance, "forget_ratio": RATIO, "improve_ratio": RATIO},
            **(forgetting if forgets else {"forget": None}),
            "improve": {"learning_rate": rate, "nll": nll, **settings},
        }

    return stages


ARMS: dict[str, Arm] = {
    "SFT": Arm("what every arm starts from", "supervised", "none", "sft", _supervised(1)),
    "SFT ×2": Arm("SFT for twice the steps", "supervised", "none", "sft", _supervised(2)),
    "A": Arm("DPO, all weights", "dpo", "dense", "warmup", _dense()),
    "A TRL": Arm("DPO, all weights, by TRL", "dpo", "dense", "warmup", _dense(trainer="trl")),
    "B": Arm("DPO in the 5 % that a warm-up moves most", "allo", "located", "improve", _masked(filter_ratio=1.0)),
    "C": Arm("DPO in a random 5 %", "allo", "random", "improve", _masked("random", filter_ratio=1.0)),
    "D": Arm("ALLO", "allo", "located", "improve", _masked(forgets=True)),
    "E": Arm("ALLO without forgetting", "allo", "located", "improve", _masked()),
    "F": Arm("A with NLL", "dpo", "dense", "warmup", _dense(nll=1.0)),
    "G": Arm("E with NLL", "allo", "located", "improve", _masked(nll=1.0)),
    "H": Arm(
        "I in two rounds",
        "allo",
        "random",
        "improve-2",
        _masked("random", filter_ratio=1.0, nll=1.0),
        rounds=2,
    ),
    "I": Arm("C with NLL", "allo", "random", "improve", _masked("random", filter_ratio=1.0, nll=1.0)),
    "J": Arm("F in two rounds", "dpo", "dense", "warmup-2", _dense(nll=1.0), rounds=2),
    "K": Arm("A with β 3", "dpo", "dense", "warmup", _dense(beta=FIRM), firm=True),
    "L": Arm("C with β 3", "allo", "random", "improve", _masked("random", filter_ratio=1.0, beta=FIRM), firm=True),
    "M": Arm("B with β 3", "allo", "located", "improve", _masked(filter_ratio=1.0, beta=FIRM), firm=True),
    "N": Arm("D with β 3", "allo", "located", "improve", _masked(forgets=True, beta=FIRM), firm=True),
    "O": Arm(
        "M in two rounds",
        "allo",
        "located",
        "improve-2",
        _masked(filter_ratio=1.0, beta=FIRM),
        rounds=2,
        firm=True,
    ),
    "P": Arm("K in two rounds", "dpo", "dense", "warmup-2", _dense(beta=FIRM), rounds=2, firm=True),
    "Q": Arm(
        "DPO in the 5 % of the largest gradient, with β 3",
        "allo",
        "gradient",
        "improve",
        _masked("gradient", filter_ratio=1.0, beta=FIRM),
        firm=True,
    ),
}
BASELINE, STRONG, TWICE = "A", "K", "J"
"""What the arms are held against: DPO as it is, as it is best in all weights, and that in two rounds, with twice the
samples and steps."""

SCALES = {
    "screening": Scale(
        name="screening",
        model="study-small",
        soft={
            "dense": (5e-6, 2e-5, 7e-5, 3e-4),
            "located": (4e-6, 1.5e-5, 6e-5, 2.5e-4),
            "random": (1.5e-5, 6e-5, 2.5e-4, 1e-3),
        },
        firm={
            "dense": (2e-5, 7e-5, 3e-4, 1e-3),
            "located": (6e-5, 2.5e-4, 1e-3, 4e-3),
            "gradient": (6e-5, 2.5e-4, 1e-3, 4e-3),
            "random": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
        },
        locating=2e-5,
        sft={"learning_rate": 2e-4, "batch_size": 16, "n_epochs": 1},
        seeds=10,
        sizes=SIZES,
    ),
    "full": Scale(
        name="full",
        model="smollm2-135m-instruct",
        soft={
            "dense": (1e-6, 2e-6, 5e-6, 1.5e-5),
            "located": (5e-6, 1.5e-5, 5e-5, 1.5e-4),
            "random": (5e-6, 1.5e-5, 5e-5, 1.5e-4),
        },
        firm={
            "dense": (2e-6, 5e-6, 1.5e-5, 5e-5),
            "located": (5e-6, 1.5e-5, 5e-5, 1.5e-4),
            "gradient": (5e-6, 1.5e-5, 5e-5, 1.5e-4),
            "random": (1.5e-5, 5e-5, 1.5e-4, 5e-4),
        },
        locating=1e-6,
        sft={"learning_rate": 1e-4, "batch_size": 16, "n_epochs": 2},
        seeds=5,
        sizes={**SIZES, "preference": 1200},
    ),
}
SCALES["short"] = replace(
    SCALES["full"],
    name="short",
    soft={"dense": (1e-6, 2e-6, 5e-6), "located": (2e-6, 5e-6, 1.5e-5), "random": (1.5e-5, 5e-5, 1.5e-4)},
    firm={
        "dense": (2e-6, 5e-6, 1.5e-5),
        "located": (1.5e-5, 5e-5, 1.5e-4),
        "gradient": (1.5e-5, 5e-5, 1.5e-4),
        "random": (5e-5, 1.5e-4, 5e-4),
    },
    seeds=2,
    precision="bfloat16",
)
"""What of `full` some hours of one core can tell; bfloat16 is what GPUs compute in, and AVX-512 is fast at it, too."""


def method(scale: Scale, arm: str, rate: float) -> dict[str, Any]:
    """The `method` of the arm's job."""
    common = {
        "template": scale.task.template,
        "batch_size": scale.batch,
        "n_epochs": 1,
        "max_response_tokens": scale.task.tokens,
        "decoding_batch": 256,
        "precision": scale.precision,
    }
    shared: Stages = (
        {}
        if ARMS[arm].method == "supervised"
        else {
            "sample": {"n": scale.n, "rounds": ARMS[arm].rounds},
            "pair": {"max_pairs": scale.pairs, "max_negatives": scale.pairs},
        }
    )
    kind = ARMS[arm].method
    return {"type": kind, kind: {"hyperparameters": common, "stages": {**shared, **ARMS[arm].stages(scale, rate)}}}
