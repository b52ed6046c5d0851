"""Locating: the global top r of all weights, by how much they count for alignment (see importance.py).

Both masks come from the same passes; the smaller ratio's mask lies within the larger's. Beside the masks, where.json
says how many weights of each tensor they take, and which share of each module of each layer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from allo_engine.checkpoints.names import names_of, trained_sizes
from allo_engine.checkpoints.reading import Checkpoint
from allo_engine.configs.locate import LocateConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, pairs
from allo_engine.masking.gradients import fitted_gradients
from allo_engine.masking.importance import Gradient, Least, Random, Update
from allo_engine.masking.masks import Counts, write_masks
from allo_engine.masking.selection import Source, Threshold, count_of, thresholds
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.sequences import Group
from allo_engine.ranks import Ranks, here
from allo_engine.report import Report, StageError, Stopped, Tick


def run(config: LocateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    with _source(config, inputs, work, report) as source:
        total = sum(source.sizes.values())
        ranks = {
            "forget": count_of(config.forget_ratio, total),
            "improve": count_of(config.improve_ratio, total),
        }
        # One pass finds the thresholds, one writes the masks; against gradients, they take no time to speak of.
        tick = _stopper(report) if config.importance == "gradient" else _ticker(report, 2 * total, Ranks().tally())
        found = _thresholds(source, ranks.values(), tick, config)
        folder = outputs / "masks"
        rows, shared = write_masks(source, ranks, found, folder, tick)
    where = {"tensors": rows, "layers": _by_layer(rows)}
    (folder / "where.json").write_text(json.dumps(where, indent=2))
    report.progress(1, 1)
    counts = {f"{use}_selected": sum(row[use] for row in rows.values()) for use in ranks}
    return {"weights": total, **counts, "overlap": shared / min(counts.values())}


@contextmanager
def _source(config: LocateConfig, inputs: Inputs, work: Path, report: Report) -> Iterator[Source]:
    if config.importance == "gradient":
        yield _gradient(config, inputs, work, report)
        return
    sizes = trained_sizes(inputs["model"])
    if config.importance == "random":
        yield Random(sizes, config.seed)
        return
    with Checkpoint(inputs["model"]) as before, Checkpoint(inputs["updated"]) as after:
        importance = Least if config.importance == "least" else Update
        yield importance(before.tensors, after.tensors, sizes)


def _gradient(config: LocateConfig, inputs: Inputs, work: Path, report: Report) -> Gradient:
    groups = pair_groups(config, inputs, report)
    model = load_model(inputs["model"], dtype_of(config.precision))
    tick = _ticker(report, sum(group.tokens() for group in groups), here().tally())
    gradients = fitted_gradients(model, inputs["model"], groups, config, work, report, tick)
    return Gradient(gradients, names_of(model, inputs["model"]))


def pair_groups(config: LocateConfig, inputs: Inputs, report: Report) -> list[Group]:
    """The pairs whose loss the gradient is of."""
    encoder = Encoder.of(inputs["model"], config)
    return fitting_groups(pairs(inputs["pairs"], encoder), config, inputs["model"], report)


def _ticker(report: Report, total: int, tally: Callable[[int], int]) -> Tick:
    stop_if_asked = _stopper(report)

    def tick(count: int) -> None:
        report.progress(min(tally(count), total - 1), total)  # the last of it is told when the stage is done
        stop_if_asked(count)

    return tick


def _stopper(report: Report) -> Tick:
    def tick(_: int) -> None:
        if report.stop_requested:
            raise Stopped

    return tick


def _thresholds(source: Source, ranks: Iterable[int], tick: Tick, config: LocateConfig) -> dict[int, Threshold]:
    try:
        found = thresholds(source, ranks, tick)
    except ValueError as error:
        if config.importance == "gradient":
            remedy = "The gradient of weight {}: set precision to 'float32', or start from another model."
        else:
            remedy = "The warm-up's update of weight {}: lower warmup.learning_rate."
        raise StageError("diverged", remedy.format(error)) from error
    if config.importance == "update" and any(threshold == Threshold(0, rank) for rank, threshold in found.items()):
        raise StageError(
            "nothing_moved",
            "The warm-up's result is the model that it started from, so there is nothing to locate: lower "
            "warmup.learning_rate, set warmup.keep to 'last', or locate.importance to 'random'.",
        )
    return found


def _by_layer(rows: Mapping[str, Counts]) -> dict[str, dict[str, dict[str, float]]]:
    """Layer → module → its weights, and the share of them that each mask takes."""
    sums: dict[str, dict[str, Counts]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for name, row in rows.items():
        layer, module = place_of(name)
        for key, count in row.items():
            sums[layer][module][key] += count
    return {
        layer: {module: _shares(row) for module, row in modules.items()}
        for layer, modules in sorted(sums.items(), key=lambda item: _with_long_numbers(item[0]))
    }


def _shares(row: Counts) -> dict[str, float]:
    return {key: count if key == "weights" else round(count / row["weights"], 6) for key, count in row.items()}


def place_of(name: str) -> tuple[str, str]:
    """(layer, module) of a weight: its name up to the first number, and the rest without the parameter's own name."""
    module = name.rpartition(".")[0] or name
    numbered = re.fullmatch(r"(.*?\.\d+)\.(.+)", module)
    return (numbered[1], numbered[2]) if numbered else ("outside the layers", module)


def _with_long_numbers(name: str) -> str:
    """A text to sort by: layer 9 before layer 10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(8), name)
