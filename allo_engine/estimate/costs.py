"""From what a stage computes to seconds, memory and disk, on a machine whose rates are known. All constants stand here.

Work is counted, not timed: rows of tokens through the model, steps of an optimizer, steps of decoding, bytes written.
Free of torch.
"""

from __future__ import annotations

from dataclasses import replace

from allo_engine.estimate.loads import Load, Passes, Place
from allo_engine.estimate.rates import TRAINING, Calibration, flops
from allo_engine.model.decoding import decoding_bytes
from allo_engine.model.memory import Use, cache_bytes, held_bytes, row_bytes
from allo_engine.model.served import PROCESS_BYTES as SERVED_BYTES
from allo_engine.model.served import served_bytes
from allo_engine.model.shape import Shape

NOISE = 0.2
"""The same stage takes up to this share more or less from one run to the next, on a machine that others share."""

DISPATCH_SECONDS = 1.5
"""A stage is rung for, claimed, given its inputs, forked from a process that has the engine loaded, and read to its
end: from claim to result one with next to nothing to compute took 0.6 s, beside other work on two CPU cores."""

TRL_SECONDS, TRL_BYTES = 5.0, 160_000_000
"""To import TRL takes so long, and so much memory of the process."""

LOAD_BYTES = 1e9
"""Bytes a second of reading weights into memory."""

STORE_COPIES = 2
"""A result is written by its stage and written again into the store, hashed on the way."""

JUDGE_SECONDS = 6e-4
"""Reading one response's answer and comparing it."""

TEACHER_SECONDS, TEACHER_TOKENS = 1.0, 50.0
"""Until a teacher begins to answer, and the tokens a second that it writes then, as hosted models do."""

SERVING_SECONDS = 20.0
"""Until vLLM has loaded a model and answered its canary: 10 to 30 on two CPU cores, with `import vllm` the most of it.
Then it is taken to decode as quickly as we do."""

STREAMED_WEIGHTS = 2e8
"""Weights a second of `locate` (`allo bench locate`): both checkpoints read twice, the masks written."""

GATHERED_WEIGHTS = 2e8
"""Masked entries a second that a backward pass gathers."""

SPARSE_STEP = 3
"""A masked entry's step costs so many dense ones: it is also written back into its weight, which is elsewhere."""

CACHE_TRIPS = 3
"""A step of decoding reads the cache of keys and values, and copies it to append to it."""

VALUE_BYTES, CHECKPOINT_BYTES = 4, 12
"""Bytes of a trained value, and of its part of a checkpoint for resuming: with two moments."""

CHECKPOINT_SHARE = 20
"""Checkpoints for resuming take at most one part in so many of a training's time (see training.py)."""

DELTA_BYTES = 3.2
"""Bytes an entry of a sparse checkpoint."""

TEXT_BYTES = 12
"""Bytes a token of what stages write as JSON lines."""

PROCESS_BYTES = {"cpu": 430_000_000}
"""Memory of a process that has imported torch and transformers; what an accelerator holds is counted without it.
`locate` on two checkpoints holds a few megabytes of them at a time.
"""


def seconds(load: Load, shape: Shape, rates: Calibration, rewriter: Shape | None = None) -> float:
    """How long a stage takes, from the moment it is ready to its result in the store; `rewriter` is the shape of the
    model that judges, where that is another.
    """
    judge = rewriter or shape
    judges = bool(load.judging.tokens)
    model_bytes = 4 * ((load.models - judges) * shape.weights + judges * judge.weights)
    loading = model_bytes * (1 / rates.hash_bytes + (0 if load.streamed else 1 / LOAD_BYTES))
    forward = sum(_forward_seconds(found, shape, rates) for found in load.forward)
    forward += _forward_seconds(load.judging, judge, rates)
    training = _training_seconds(load, shape, rates)
    streaming = shape.weights / STREAMED_WEIGHTS if load.streamed else 0.0
    writing = disk_bytes(load, shape) * STORE_COPIES * (1 / rates.write_bytes + 1 / rates.hash_bytes)
    return (
        DISPATCH_SECONDS
        + (TRL_SECONDS if load.by_trl else 0.0)
        + loading
        + forward
        + training
        + _resuming_seconds(load, training, shape, rates)
        + _decoding_seconds(load, shape, rates)
        + (load.models * SERVING_SECONDS if load.served else 0)
        + load.judged * JUDGE_SECONDS
        + load.asked * TEACHER_SECONDS
        + load.written / TEACHER_TOKENS
        + streaming
        + writing
    )


def _forward_seconds(work: Passes, shape: Shape, rates: Calibration) -> float:
    computing = flops(shape, work.tokens, work.attended, work.scored) / rates.forward_flops
    return computing + work.rows * shape.layers * rates.layer_seconds


def _training_seconds(load: Load, shape: Shape, rates: Calibration) -> float:
    work, trained = load.training, load.ratio * shape.weights
    again = 4 / 3 if load.gradient_checkpointing else 1.0
    rows = TRAINING * again * flops(shape, work.tokens, work.attended, work.scored) / rates.training_flops
    overhead = TRAINING * again * work.rows * shape.layers * rates.layer_seconds
    if load.kind == "sparse":
        gathering = work.rows * trained / GATHERED_WEIGHTS
        return rows + overhead + gathering + load.updates * SPARSE_STEP * trained / rates.optimizer_weights
    return rows + overhead + load.updates * trained / rates.optimizer_weights


def _resuming_seconds(load: Load, training: float, shape: Shape, rates: Calibration) -> float:
    byte = 1 / rates.write_bytes + 1 / rates.hash_bytes
    one = CHECKPOINT_BYTES * load.ratio * shape.weights * byte
    if load.kind not in ("dense", "sparse"):
        return 0.0
    averaging = load.averages * VALUE_BYTES * load.ratio * shape.weights * byte
    return averaging + one * (training // max(load.checkpoint_seconds, CHECKPOINT_SHARE * one))


def _decoding_seconds(load: Load, shape: Shape, rates: Calibration) -> float:
    """Each step reads all weights once, computes its rows, and reads and copies what the cache holds."""
    work = load.decoding
    step = load.weight_bytes * shape.weights / rates.decoding_bytes + shape.layers * rates.layer_seconds
    row = 2 * shape.weights / rates.decoding_flops
    cache = CACHE_TRIPS * cache_bytes(shape, load.weight_bytes) / rates.decoding_bytes
    decoding = work.steps * step + work.row_steps * row + work.cached * cache
    return _forward_seconds(work.prompts, shape, rates) + decoding


def peak_bytes(load: Load, shape: Shape, place: Place, rewriter: Shape | None = None) -> int:
    """The most memory that a stage holds at once: on an accelerator its own, else the process's."""
    if load.streamed:
        return PROCESS_BYTES["cpu"]
    device_type = place.device
    base = PROCESS_BYTES.get(device_type, 0) + (TRL_BYTES if load.by_trl and device_type == "cpu" else 0)
    if not load.models:
        return base
    use = Use(load.kind, load.weight_bytes, load.ratio, load.moments, load.gradient_checkpointing, device_type)
    scoring = replace(use, kind="forward")
    if load.served:
        served = served_bytes(shape, scoring, load.decoding.rows, load.decoding.length, place.free_bytes)
        return SERVED_BYTES.get(device_type, 0) + served
    forward = max([0, *(_row_bytes(found, shape, scoring) for found in load.forward)])
    most = max(forward, _row_bytes(load.training, shape, use), _decoding_bytes(load, shape, scoring))
    judging = held_bytes(rewriter or shape, scoring) + _row_bytes(load.judging, rewriter or shape, scoring)
    return base + max(held_bytes(shape, use) + most, judging if load.judging.longest else 0)


def _row_bytes(work: Passes, shape: Shape, use: Use) -> int:
    return row_bytes(shape, use, work.longest) if work.longest else 0


def _decoding_bytes(load: Load, shape: Shape, use: Use) -> int:
    work = load.decoding
    return decoding_bytes(shape, use, work.rows, work.length, work.prompts.longest) if work.rows else 0


def disk_bytes(load: Load, shape: Shape) -> int:
    """What a stage's results take."""
    deltas = load.deltas * DELTA_BYTES * load.ratio * shape.weights
    texts = TEXT_BYTES * (load.decoding.decoded + load.decoding.prompts.tokens)
    return round(load.checkpoints * 4 * shape.weights + deltas + load.masks * shape.weights / 8 + texts)


def work_bytes(load: Load, shape: Shape, rates: Calibration) -> int:
    """What a stage takes on disk while it runs: its checkpoint for resuming, the one before it, the same of its best
    values where they are kept, the values that a mean is taken of, and its results.
    """
    trained = load.ratio * shape.weights
    one = (CHECKPOINT_BYTES + (VALUE_BYTES if load.keeps else 0)) * trained
    trains = load.kind in ("dense", "sparse")
    resumes = load.keeps or (trains and _training_seconds(load, shape, rates) > load.checkpoint_seconds)
    return round((2 * one if resumes else 0) + load.averages * VALUE_BYTES * trained) + disk_bytes(load, shape)
