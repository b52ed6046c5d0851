"""What a stage must find on a worker, told from its settings and its models' shapes alone. Free of torch.

The service writes it with a stage when its job is submitted, so that the answer can say at once what no worker has; the
dispatcher goes by it. Bytes are the least with which a stage runs, in rows of a sensible length and, where that helps,
with activations computed twice (model/memory.py has the formulas): what is free beyond that makes rows longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from allo_engine.bases import DecodingConfig, PromptConfig, StageConfig
from allo_engine.bases_trained import OwnMaskConfig, TrainingConfig
from allo_engine.configs.locate import LocateConfig
from allo_engine.model.decoding import decoding_bytes
from allo_engine.model.memory import CONTEXT_BYTES_ELSEWHERE, SPARE, Kind, Use, held_bytes, row_bytes
from allo_engine.model.served import PROCESS_BYTES as SERVED_BYTES
from allo_engine.model.served import least_served_bytes
from allo_engine.model.shape import Shape
from allo_engine.pipeline import PlannedStage

SENSIBLE, SHORT = 2048, 512
"""Tokens of a row with which a device is busy; and of one that holds an ordinary item, for what keeps every layer's
activations. A stage whose items are shorter has shorter rows."""

PROCESS_BYTES = 430_000_000
"""Host memory of a process that has imported torch and transformers."""

_PACKAGES: Mapping[str, Callable[[StageConfig], bool]] = {
    "vllm": lambda config: getattr(config, "backend", None) == "vllm",
    "bitsandbytes": lambda config: getattr(config, "moments", None) == "8bit",
    "trl": lambda config: getattr(config, "trainer", None) == "trl",
    "lm_eval": lambda config: getattr(config, "harness", None) is not None,
}
"""Each package that a setting may ask for, and whether a stage's settings do."""


_SHARING = "deepspeed"
"""The package with which several devices share out a dense stage. Frozen weights are shared out by torch itself."""


def known(kind: type[Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was written, perhaps by another version, the fields that a dataclass has in this one."""
    return {field.name: written[field.name] for field in fields(kind) if field.name in written}


@dataclass(frozen=True)
class Needs:
    """What a stage must find on one worker.

    `devices` accelerators (None: as many as there are to be had, one at least; 0: it computes nothing) of
    `device_bytes` each, and `host_bytes` for each process beside them; or, on a worker without accelerators,
    `cpu_bytes` a process. Several devices that share out what they can hold `each_bytes` each and `spread_bytes` among
    them, where the package `sharing` is installed, if it takes one; and their processes `host_spread_bytes` among them.
    0 bytes: nobody knows. `lighter` is what the user could set to need less.
    """

    devices: int | None = None
    device_bytes: int = 0
    each_bytes: int = 0
    spread_bytes: int = 0
    sharing: str = "deepspeed"
    host_bytes: int = 0
    host_spread_bytes: int = 0
    cpu_bytes: int = 0
    packages: tuple[str, ...] = ()
    precision: str = "auto"
    lighter: str = ""

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> Needs:
        """As `write` wrote them, here or in another version; where nobody did, nothing is known."""
        found = known(cls, written or {})
        return cls(**{**found, "packages": tuple(found.get("packages", ()))})

    def write(self) -> dict[str, Any]:
        return asdict(self)


Written = Mapping[str, Any] | None
"""A model's shape as a probe wrote it (model/probe.py); None where nobody has looked."""


UNKNOWN = Needs()
"""Of a stage that was planned before needs were written."""


def needs_of(plan: Sequence[PlannedStage], model: Written, rewriter: Written) -> dict[str, Needs]:
    """Each stage's needs, by its name, from the shape of the model that the job aligns and that of the one which
    `reward_model` trains; `token_rewards` reads them both, one after the other."""
    by_name = {stage.name: stage for stage in plan}
    aligned, judge = _shape(model), _shape(rewriter)
    shapes = {name: judge if stage.kind == "reward_model" else aligned for name, stage in by_name.items()}
    return {name: _needs(stage, shapes[name], _ratio(stage, by_name)) for name, stage in by_name.items()}


def _shape(written: Written) -> Shape | None:
    """None too where another version wrote it."""
    try:
        return Shape(**known(Shape, written)) if written else None
    except TypeError:
        return None


def _needs(stage: PlannedStage, shape: Shape | None, ratio: float) -> Needs:
    config, kind = stage.config, _kind(stage)
    found = Needs(
        devices=_devices(stage),
        host_bytes=PROCESS_BYTES,
        cpu_bytes=PROCESS_BYTES,
        packages=_packages(stage),
        precision=getattr(config, "precision", "auto"),
        lighter="set train: mask" if kind == "dense" else "",
    )
    if shape is None or found.devices == 0:
        return found
    on_device = _use(config, kind, ratio, "cuda")
    each, spread = _shared_bytes(stage, shape, on_device)
    return replace(
        found,
        device_bytes=CONTEXT_BYTES_ELSEWHERE + _least_bytes(stage, shape, on_device),
        each_bytes=CONTEXT_BYTES_ELSEWHERE + each if spread else 0,
        spread_bytes=spread,
        sharing=_SHARING if kind == "dense" else "",
        host_bytes=PROCESS_BYTES + _beside_bytes(shape, on_device),
        host_spread_bytes=_offloaded_bytes(stage, shape, on_device) if spread else 0,
        cpu_bytes=PROCESS_BYTES + _least_cpu_bytes(stage, shape, _use(config, kind, ratio, "cpu")),
    )


def _beside_bytes(shape: Shape, use: Use) -> int:
    """What a process holds on the host beside its device: the sums of a gradient; or of a checkpoint that it writes,
    one tensor at a time."""
    if use.kind == "gradient_on_host":
        return 4 * shape.weights
    return 4 * shape.largest if use.training else 0


def _offloaded_bytes(stage: PlannedStage, shape: Shape, use: Use) -> int:
    """What all processes of a dense stage hold on the host together where the optimizer is there: of each weight its
    two moments, and DeepSpeed's copies of itself and of its gradient, in float32."""
    offloads = use.kind == "dense" and getattr(stage.config, "offload", False)
    return 16 * shape.weights if offloads else 0


def _least_cpu_bytes(stage: PlannedStage, shape: Shape, use: Use) -> int:
    on_host = 4 * shape.weights if use.kind == "gradient_on_host" else 0
    vllm = SERVED_BYTES["cpu"] if _served(stage) else 0
    return on_host + vllm + _least_bytes(stage, shape, use)


def _served(stage: PlannedStage) -> bool:
    """Whether vLLM must answer. With "auto" our own decoding does where vLLM has too little memory."""
    return isinstance(stage.config, DecodingConfig) and stage.config.backend == "vllm"


def _packages(stage: PlannedStage) -> tuple[str, ...]:
    """What must be installed: what a setting names, and what shares out a dense stage that devices are told to."""
    named = tuple(package for package, asks in _PACKAGES.items() if asks(stage.config))
    told = _kind(stage) == "dense" and getattr(stage.config, "zero", 0) in (1, 2, 3) and _devices(stage) != 1
    return (*named, _SHARING) if told else named


def _devices(stage: PlannedStage) -> int | None:
    """`pair` computes nothing, and `locate` does so by gradient alone: else it reads checkpoints in pieces."""
    if not isinstance(stage.config, PromptConfig) or (stage.kind == "locate" and "pairs" not in stage.inputs):
        return 0
    asked = stage.config.devices
    return None if asked == "auto" else asked


def _kind(stage: PlannedStage) -> Kind:
    """How the stage uses its model where memory is short: the sums of a gradient then lie on the host."""
    if isinstance(stage.config, TrainingConfig):
        return "dense" if stage.config.train == "all" else "sparse"
    return "gradient_on_host" if stage.kind == "locate" else "forward"


def _use(config: StageConfig, kind: Kind, ratio: float, where: str) -> Use:
    precision = getattr(config, "precision", "auto")
    narrow = precision == "bfloat16" or (precision == "auto" and where == "cuda")
    use = Use(kind, 2 if narrow else 4, ratio, device_type=where)
    if isinstance(config, TrainingConfig):
        return replace(use, moments=config.moments, checkpointing=config.gradient_checkpointing is not False)
    return use


def _least_bytes(stage: PlannedStage, shape: Shape, use: Use) -> int:
    """What the stage holds, and a row beside it or, where it decodes, one response."""
    config = stage.config
    assert isinstance(config, PromptConfig)
    longest = config.max_prompt_tokens + config.max_response_tokens
    sensible = SENSIBLE if use.checkpointing or not use.training else SHORT
    if isinstance(config, DecodingConfig):
        if _served(stage):
            return least_served_bytes(shape, use, config.decoding_batch, longest)
        beside = decoding_bytes(shape, use, 1, longest, config.max_prompt_tokens)
    else:
        beside = row_bytes(shape, use, min(sensible, longest))
    return round((held_bytes(shape, use) + beside) / SPARE)


def _shared_bytes(stage: PlannedStage, shape: Shape, use: Use) -> tuple[int, int]:
    """(bytes that each device holds, bytes that several divide among them) where a stage that trains shares out as
    much as its setting allows; (0, 0) where it shares out nothing. What is divided is halved again from two devices to
    four.
    """
    config = stage.config
    if not isinstance(config, TrainingConfig):
        return 0, 0
    whole = config.zero == 0 or (config.moments == "8bit" if use.kind == "dense" else config.zero in (1, 2))
    if whole:
        return 0, 0
    shared = replace(use, zero=3 if config.zero == "auto" else config.zero, offload=config.offload)
    two, four = (_least_bytes(stage, shape, replace(shared, devices=count)) for count in (2, 4))
    return 2 * four - two, 4 * (two - four)


def _ratio(stage: PlannedStage, plan: Mapping[str, PlannedStage]) -> float:
    """The share of all weights that a stage trains, where it trains in a mask."""
    if isinstance(stage.config, OwnMaskConfig):
        return stage.config.mask_ratio
    located = plan["locate"].config if "locate" in plan else LocateConfig()
    return float(getattr(located, f"{stage.kind}_ratio", 1.0))
