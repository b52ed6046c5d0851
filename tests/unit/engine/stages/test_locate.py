"""Locating from checkpoints, or from pairs, to masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from allo_engine.config import LocateConfig
from allo_engine.masking.importance import Random
from allo_engine.masking.selection import count_of, positions
from allo_engine.model.loading import load_model
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import locate
from tests.unit.engine.conftest import Lines
from tests.unit.engine.masking.test_gradients import by_plain_autograd

SIZES = {
    "embed.weight": (40, 30),
    "model.layers.2.mlp.down.weight": (7,),
    "model.layers.10.mlp.down.bias": (3, 3),
    "model.layers.10.mlp.down.weight": (25, 80),
}
TOTAL = 1200 + 7 + 9 + 2000
Tensors = dict[str, torch.Tensor]


def save(tensors: Tensors, folder: Path, shards: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = {name: f"model-{place % shards}.safetensors" for place, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def two_checkpoints(root: Path, dtype: torch.dtype = torch.float32, shards: int = 1) -> tuple[Tensors, Tensors]:
    random = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(shape, generator=random) for name, shape in SIZES.items()}
    before = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in SIZES.items()}
    scales = dict(zip(SIZES, (1e-2, 1e-1, 1.0, 1.0), strict=True))
    after = {name: (t + scales[name] * noise[name]).to(dtype) for name, t in before.items()}
    save(before, root / "model", shards)
    save(after, root / "updated")
    return before, after


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    two_checkpoints(tmp_path)
    return {"model": tmp_path / "model", "updated": tmp_path / "updated"}


def chosen(inputs: dict[str, Path], folder: Path, report: Report, **settings: Any) -> dict[str, set[int]]:
    locate.run(LocateConfig(**settings), inputs, folder, folder, report)
    bits = load_file(folder / "masks" / "improve.safetensors")
    return {name: set(positions(bits[name], int(np.prod(shape))).tolist()) for name, shape in SIZES.items()}


def sorted_out(before: Tensors, after: Tensors, rank: int) -> dict[str, set[int]]:
    """The definition: the largest |Δ| of all in float32, the first in order of names where two are equal."""
    moved = {name: (after[name].float() - before[name].float()).abs().reshape(-1) for name in sorted(before)}
    order = torch.cat(list(moved.values())).argsort(descending=True, stable=True)[:rank]
    ends = np.cumsum([len(values) for values in moved.values()])
    found: dict[str, set[int]] = {name: set() for name in moved}
    for place in order.tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        name = list(moved)[number]
        found[name].add(place - int(ends[number]) + len(moved[name]))
    return found


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.001, 1 / 3, 1.0])
def test_the_mask_is_the_top_of_the_updates_whatever_they_are_stored_in(
    tmp_path: Path, report: Report, dtype: torch.dtype, shards: int, ratio: float
) -> None:
    before, after = two_checkpoints(tmp_path, dtype, shards)
    inputs = {"model": tmp_path / "model", "updated": tmp_path / "updated"}
    mask = chosen(inputs, tmp_path / "out", report, improve_ratio=ratio)
    assert mask == sorted_out(before, after, count_of(ratio, TOTAL))


@pytest.mark.parametrize("ratio", [0.001, 0.05, 1 / 3, 0.77, 1.0])
@pytest.mark.parametrize("importance", ["update", "least", "random"])
def test_every_importance_selects_exactly_its_share_and_the_same_each_time(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report, importance: str, ratio: float
) -> None:
    first = chosen(checkpoints, tmp_path / "1", report, importance=importance, improve_ratio=ratio, seed=3)
    assert sum(map(len, first.values())) == count_of(ratio, TOTAL)
    assert first == chosen(checkpoints, tmp_path / "2", report, importance=importance, improve_ratio=ratio, seed=3)


def test_a_warm_up_that_moved_nothing_locates_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    inputs = checkpoints | {"updated": checkpoints["model"]}
    with pytest.raises(StageError, match="result is the model that it started from"):
        chosen(inputs, tmp_path / "out", report, improve_ratio=0.3)
    assert sum(map(len, chosen(inputs, tmp_path / "any", report, importance="random").values()))


def test_least_and_most_are_the_two_ends_of_one_order(tmp_path: Path, report: Report) -> None:
    before, after = two_checkpoints(tmp_path)
    inputs = {"model": tmp_path / "model", "updated": tmp_path / "updated"}
    least = chosen(inputs, tmp_path / "least", report, importance="least", improve_ratio=0.3)
    moved = {name: (after[name] - before[name]).abs().reshape(-1).numpy() for name in SIZES}
    inside = max(moved[name][sorted(places)].max() for name, places in least.items() if places)
    outside = min(np.delete(moved[name], sorted(places)).min(initial=np.inf) for name, places in least.items())
    assert inside <= outside


def test_random_takes_every_tensor_by_its_size_and_follows_the_seed(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    one = chosen(checkpoints, tmp_path / "1", report, importance="random", improve_ratio=0.5, seed=1)
    two = chosen(checkpoints, tmp_path / "2", report, importance="random", improve_ratio=0.5, seed=2)
    assert one != two
    assert 0.4 < len(one["embed.weight"]) / 1200 < 0.6


def test_random_numbers_are_the_same_however_they_are_read() -> None:
    source = Random({"a": 10, "b": 1000}, seed=4)
    whole = source.patterns("b", 0, 1000)
    for start, count in ((0, 3), (3, 5), (8, 8), (13, 700), (999, 1)):
        assert np.array_equal(source.patterns("b", start, count), whole[start : start + count])
    assert not np.array_equal(source.patterns("a", 0, 10), whole[:10])


@pytest.mark.parametrize("improve_ratio", [0.2, 0.5])
def test_the_smaller_mask_lies_within_the_larger(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report, improve_ratio: float
) -> None:
    config = LocateConfig(forget_ratio=0.2, improve_ratio=improve_ratio)
    metrics = locate.run(config, checkpoints, tmp_path / "out", tmp_path, report)
    forget, improve = (load_file(tmp_path / "out" / "masks" / f"{use}.safetensors") for use in ("forget", "improve"))
    assert not any((forget[name] & ~improve[name]).any() for name in SIZES)
    selected = {f"{use}_selected": count_of(getattr(config, f"{use}_ratio"), TOTAL) for use in ("forget", "improve")}
    assert metrics == {"weights": TOTAL, **selected, "overlap": 1.0}


def test_the_report_says_where_the_mask_lies(checkpoints: dict[str, Path], tmp_path: Path, report: Report) -> None:
    mask = chosen(checkpoints, tmp_path / "out", report, improve_ratio=0.25)
    where = json.loads((tmp_path / "out" / "masks" / "where.json").read_text())
    assert {name: row["improve"] for name, row in where["tensors"].items()} == {n: len(p) for n, p in mask.items()}
    assert list(where["layers"]) == ["model.layers.2", "model.layers.10", "outside the layers"]
    down = where["layers"]["model.layers.10"]["mlp.down"]
    taken = len(mask["model.layers.10.mlp.down.weight"]) + len(mask["model.layers.10.mlp.down.bias"])
    assert down["weights"] == 2009
    assert down["improve"] == pytest.approx(taken / 2009, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.down_proj.weight", ("model.layers.3", "mlp.down_proj")),
        ("transformer.h.11.attn.c_attn.bias", ("transformer.h.11", "attn.c_attn")),
        ("model.layers.3.mlp.experts.7.up_proj.weight", ("model.layers.3", "mlp.experts.7.up_proj")),
        ("model.embed_tokens.weight", ("outside the layers", "model.embed_tokens")),
        ("scale", ("outside the layers", "scale")),
    ],
)
def test_a_weights_place_is_read_from_its_name(name: str, place: tuple[str, str]) -> None:
    assert locate.place_of(name) == place


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_warm_up_that_diverged_is_told(tmp_path: Path, report: Report, bad: float) -> None:
    _, after = two_checkpoints(tmp_path)
    after["model.layers.2.mlp.down.weight"][3] = bad
    save(after, tmp_path / "updated")
    with pytest.raises(StageError, match=r"layers\.2.*warmup\.learning_rate") as error:
        chosen({"model": tmp_path / "model", "updated": tmp_path / "updated"}, tmp_path / "out", report)
    assert error.value.code == "diverged"


@pytest.mark.parametrize("shape", [None, (30, 40), (1,)])
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, report: Report, shape: tuple[int, ...] | None
) -> None:
    _, after = two_checkpoints(tmp_path)
    del after["embed.weight"]
    save(after | ({"embed.weight": torch.zeros(shape)} if shape else {}), tmp_path / "updated")
    with pytest.raises(StageError, match="embed") as error:
        chosen({"model": tmp_path / "model", "updated": tmp_path / "updated"}, tmp_path / "out", report)
    assert error.value.code == "wrong_base"


def test_weights_that_are_no_floats_are_refused(tmp_path: Path, report: Report) -> None:
    save({"a": torch.zeros(3, dtype=torch.int64)}, tmp_path / "model")
    with pytest.raises(StageError, match="I64"):
        chosen({"model": tmp_path / "model", "updated": tmp_path / "model"}, tmp_path / "out", report)


def test_a_file_that_was_cut_off_is_told(checkpoints: dict[str, Path], tmp_path: Path, report: Report) -> None:
    path = checkpoints["updated"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StageError, match="ends early"):
        chosen(checkpoints, tmp_path / "out", report)


def test_a_stop_is_heard_between_pieces(checkpoints: dict[str, Path], tmp_path: Path, report: Report) -> None:
    report.stop_requested = True
    with pytest.raises(Stopped):
        chosen(checkpoints, tmp_path / "out", report)


# --- by the gradient at the start model

PREFERENCES = [
    {"prompt": "one", "chosen": "a good word", "rejected": "a bad one"},
    {"prompt": "one", "chosen": "a good word", "rejected": "worse"},
    {"prompt": "another", "chosen": "right", "rejected": "wrong, and longer"},
]


@pytest.fixture
def preferences(model_folder: Path, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "data.jsonl").write_text("\n".join(map(json.dumps, PREFERENCES)))
    return {"model": model_folder, "pairs": tmp_path / "pairs"}


def test_the_gradient_needs_pairs_and_no_warm_up(
    preferences: dict[str, Path], tmp_path: Path, report: Report, stream: Lines
) -> None:
    config = LocateConfig(importance="gradient", improve_ratio=0.2, micro_batch_tokens=16)
    metrics = locate.run(config, preferences, tmp_path / "out", tmp_path / "work", report)
    model = load_model(preferences["model"])
    gradients = by_plain_autograd(model, locate.pair_groups(config, preferences, report))
    bits = load_file(tmp_path / "out" / "masks" / "improve.safetensors")
    assert bits.keys() == dict(model.named_parameters()).keys()
    inside = {name: np.isin(np.arange(g.numel()), positions(bits[name], g.numel())) for name, g in gradients.items()}
    values = {name: gradient.abs().reshape(-1).numpy() for name, gradient in gradients.items()}
    lowest = min(values[name][mask].min(initial=np.inf) for name, mask in inside.items())
    highest = max(values[name][~mask].max(initial=0) for name, mask in inside.items())
    assert sum(mask.sum() for mask in inside.values()) == metrics["improve_selected"]
    assert lowest > highest * 0.999
    steps = [(line["step"], line["total"]) for line in stream.lines() if line["type"] == "progress"]
    assert steps[-1] == (1, 1)


def test_a_stop_is_heard_between_rows(preferences: dict[str, Path], tmp_path: Path, report: Report) -> None:
    report.stop_requested = True
    with pytest.raises(Stopped):
        locate.run(LocateConfig(importance="gradient"), preferences, tmp_path / "out", tmp_path / "work", report)
