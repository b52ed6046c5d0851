"""Frozen weights that ranks share out: trained as by one process that holds them whole, and half as much on two."""

from __future__ import annotations

import gc
import io
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import Values, write_into
from allo_engine.checkpoints.names import names_of
from allo_engine.checkpoints.parts import fill, part_of, weights_by_name
from allo_engine.config import SftConfig
from allo_engine.masking.entries import stored_values
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import empty_model, load_model
from allo_engine.model.logps import token_logps
from allo_engine.model.sequences import Row, build_row, singles
from allo_engine.model.sharing import in_parts
from allo_engine.ranks import here
from allo_engine.report import Report, StageError
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.trained import parted_trainer, sparse_trainer
from tests.architectures import PACKED, save_random
from tests.benchmarks.ranks import sent_bytes
from tests.tiny import save_tiny, tiny_model
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.processes import as_ranks
from tests.unit.engine.test_main import finish, start, write_task
from tests.unit.engine.test_ranks import begun, material, ranked
from tests.unit.engine.training.test_gradients_of_ranks import DESCENT, STEP, autograd, examples, model_of
from tests.waiting import PATIENCE

Arrays = dict[str, np.ndarray]
SEVERAL_STEPS = {"epsilon": 1e-3, "learning_rate": 1e-3, "batch_size": 2, "n_epochs": 2}


def saved(folder: Path, tied: bool = True, twice: bool = False, hidden: int = 32) -> Path:
    """Of a layer that is used twice, its weights once."""
    model = model_of(tied, twice) if hidden == 32 else tiny_model(tied=tied, hidden=hidden)
    model.config.save_pretrained(folder)
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def each(folder: Path, nth: int) -> Values:
    """Of every stored weight each nth entry."""
    sizes = {name: weight.numel() for name, weight in load_file(folder / "model.safetensors").items()}
    return stored_values(folder, {name: np.arange(0, size, nth) for name, size in sizes.items()})


def moved(
    folder: Path, how: Mapping[str, Any], work: Path, parted: bool = True, twice: bool = False, nth: int = 3
) -> dict[str, Any]:
    """By how much training moves each masked entry, what this rank holds behind it, and what it has sent."""
    config, report, ranks = SftConfig(train="mask", **how), Report(io.StringIO()), here()
    model, start = (empty_model if parted else load_model)(folder), each(folder, nth)
    if twice:
        model.model.layers[1] = model.model.layers[0]
    names, own = names_of(model, folder), work / str(ranks.rank)
    if parted:
        sparse, trainer = parted_trainer(model, folder, names, start, {}, config, report, own)
    else:
        sparse, trainer = sparse_trainer(model, folder, names, start, config, report, own)
    before = sent_bytes()
    trainer.train(examples(6), CrossEntropy())
    return {
        "moved": {name: values - start[name][1] for name, (_, values) in sparse.trained().items()},
        "held": storages(),
        "sent": sent_bytes() - before,
    }


def storages() -> int:
    """Bytes of all floating-point tensors of this process."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter) and one.is_floating_point()]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def furthest(ours: Arrays, theirs: Arrays) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(values - theirs[name]).max()) for name, values in ours.items())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("tied", "twice"), [(False, False), (True, True)])
@pytest.mark.parametrize(("ranks", "budget"), [(2, 4096), (3, 16)])
def test_a_step_moves_by_autograds_gradient(
    tmp_path: Path, tied: bool, twice: bool, again: bool, ranks: int, budget: int
) -> None:
    """Of 261 rows three ranks hold unlike parts; ranks have unlike numbers of rows."""
    folder, expected = saved(tmp_path / "model", tied, twice), autograd(examples(6), tied, twice)
    how = {**STEP, **DESCENT, "micro_batch_tokens": budget, "gradient_checkpointing": again}
    for found in as_ranks(ranks, tmp_path, moved, folder, how, tmp_path, True, twice):
        gradient = {name: values[::3] for name, values in expected.items()}
        largest = max(1, *(float(np.abs(values).max()) for values in gradient.values()))
        assert furthest({name: -values for name, values in found["moved"].items()}, gradient) < 1e-5 * largest


def test_each_of_two_ranks_holds_half_of_what_is_frozen(tmp_path: Path) -> None:
    """Between steps, with all that training has made."""
    folder = saved(tmp_path / "model", hidden=256)
    frozen = (folder / "model.safetensors").stat().st_size
    held = {}
    for parted in (False, True):
        work = tmp_path / str(parted)
        held[parted] = [one["held"] for one in as_ranks(2, work, moved, folder, SEVERAL_STEPS, work, parted)]
    for whole, part in zip(held[False], held[True], strict=True):
        assert 0.48 * frozen < whole - part < 0.51 * frozen


def test_no_more_of_trained_gradients_is_sent_than_where_weights_are_whole(tmp_path: Path) -> None:
    """Of a mask ten times as large as another, the rest: four bytes an entry and step, there and back."""
    folder, more = saved(tmp_path / "model", hidden=128), {}
    for parted in (False, True):
        sent = []
        for nth in (2, 20):
            work = tmp_path / f"{parted}-{nth}"
            sent.append(
                [one["sent"] for one in as_ranks(2, work, moved, folder, SEVERAL_STEPS, work, parted, False, nth)]
            )
        more[parted] = np.subtract(*sent)
    assert more[True] == pytest.approx(more[False], rel=0.02)


def read_bytes() -> int:
    """What this process has read, from files and all else."""
    return int(Path("/proc/self/io").read_text().split()[1])


def read_for_parts(folder: Path) -> tuple[int, bool]:
    """What it reads for its part of a model; and whether that is what is stored, with what was written on top."""
    top = {"lm_head.weight": (np.array([0, 7, 8_000]), np.array([1, 2, 3], np.float32))}
    in_parts(model := empty_model(folder), folder, names_of(model, folder), top)  # what is imported is read as well
    model = empty_model(folder)
    names, before = names_of(model, folder), read_bytes()
    in_parts(model, folder, names, top)
    done, whole = read_bytes() - before, load_model(folder)
    write_into(whole, top.items(), names)
    right = [
        torch.equal(part, weights_by_name(whole)[name].detach().view(-1)[first:][: len(part)])
        for name, weight in weights_by_name(model).items()
        for part, first in [part_of(weight)]
    ]
    return done, all(right)


def test_a_rank_reads_no_more_than_its_part_of_a_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tied=False, hidden=256)
    size = (folder / "model.safetensors").stat().st_size
    for read, right in as_ranks(3, tmp_path, read_for_parts, folder):
        assert right
        assert read < 0.36 * size


def test_tied_embeddings_that_are_stored_unlike_are_not_taken_for_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, tied=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors")
    model = empty_model(folder)
    with pytest.raises(StageError, match="set tie_word_embeddings to false"):
        fill(model, folder, names_of(model, folder))


def masked_gradient(sparse: SparseModel, through: Any, rows: Sequence[Row]) -> Tensor:
    for row in rows:
        through(row).sum().backward()
    return torch.cat([values.grad.flatten() for values in sparse.values.values()])


def alike(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two models' weights are of the same dtypes, and their buffers the same."""
    dtypes = [{name: weight.dtype for name, weight in one.named_parameters()} for one in (first, second)]
    buffers = [dict(one.named_buffers()) for one in (first, second)]
    return dtypes[0] == dtypes[1] and all(
        tensor.dtype == buffers[1][name].dtype and torch.equal(tensor, buffers[1][name])
        for name, tensor in buffers[0].items()
    )


def architectures(root: Path, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Of each architecture how far masked gradients of a model that is shared out are from one's that is whole, and how
    large they are.
    """
    rows = [
        build_row([singles(key, [0, 7, 8, 9], [[20 + key, 30, 1], [40, 1]])], torch.device("cpu")) for key in (0, 1)
    ]
    found = {}
    for folder in sorted(root.iterdir()):
        start = each(folder, 3)
        whole, empty = load_model(folder, dtype), empty_model(folder, dtype)
        names = names_of(whole, folder)
        assert alike(whole, empty), folder.name
        start = {name: entries for name, entries in start.items() if name in names.places}
        sparse, parts = SparseModel(whole, start, names), SparseModel(empty, start, names)
        way = in_parts(empty, folder, names, {}, parts.values.values())
        assert sum(isinstance(module, FSDPModule) for module in way.modules()) > 2, "its layers and the rest"
        expected = masked_gradient(sparse, lambda row, model=whole: token_logps(model, row), rows)
        ours = masked_gradient(parts, way, rows)
        found[folder.name] = float((ours - expected).abs().max()), float(expected.abs().max())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture_that_packs_rows_has_the_gradients_of_a_whole_model(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Experts that are stored one by one and stand in memory as one weight; what stays float32 among 16 bits; buffers
    that are stored."""
    for name in PACKED:
        save_random(name, tmp_path / "models" / name.replace(" ", "-"))
    for found in as_ranks(2, tmp_path, architectures, tmp_path / "models", dtype):
        assert len(found) == len(PACKED)
        for name, (difference, largest) in found.items():
            assert difference <= 1e-5 * max(1, largest), name
            assert largest > 0, name


def test_every_masked_stage_of_a_job_ends_in_the_weights_of_one_process(tmp_path: Path) -> None:
    """Their own masks are located in a model that is shared out, too."""
    one, two = (ranked(material(tmp_path / str(size)), size, "parted") for size in (1, 2))
    for stage, weights in one.items():
        assert furthest(weights, two[stage]) < 1e-5, stage


def test_a_killed_process_costs_an_attempt_and_any_number_goes_on(tmp_path: Path) -> None:
    """The memory that they are given holds no model whole: two share it out, then three, then two, or one that takes it
    as it is."""
    inputs = {"model": save_tiny(tmp_path / "model"), "examples": write_problems(tmp_path / "data")}
    settings = {"train": "mask", "learning_rate": 1e-3, "n_epochs": 8, "batch_size": 4, "checkpoint_seconds": 0.01}
    settings |= {"memory_gb": 1e-6, "micro_batch_tokens": 512}
    whole = write_task(tmp_path / "whole", "sft", {**settings, "devices": 1}, inputs)
    assert finish(start("sft", whole))[0] == 0
    for devices, step in ((2, 4), (3, 8)):
        process = start("sft", write_task(tmp_path / "cut", "sft", {**settings, "devices": devices}, inputs))
        others = begun(process, step)
        if devices == 2:
            others[0].kill()
        else:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == (1 if devices == 2 else 75)
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    for name, devices in (("cut", 2), ("alone", 1)):
        task = write_task(tmp_path / name, "sft", {**settings, "devices": devices}, inputs)
        status, lines = finish(start("sft", task))
        assert status == 0, lines[-1]
        shared = [line["data"] for line in lines if "zero" in line.get("data", {})]
        assert shared == ([{"zero": 3}] if devices > 1 else [])
        assert any("Resumed" in line.get("message", "") for line in lines)
        assert furthest(trained(tmp_path / name), trained(tmp_path / "whole")) < 1e-5


def trained(folder: Path) -> dict[str, Any]:
    weights = load_file(folder / "out/checkpoint/model.safetensors")
    return {name: weight.numpy() for name, weight in weights.items()}
