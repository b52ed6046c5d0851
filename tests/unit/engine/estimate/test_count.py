"""What a job computes is counted once, and priced for any worker of a kind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from allo_engine.estimate.count import count, estimate, here, main
from allo_engine.estimate.job import Job
from allo_engine.estimate.loads import Load, Passes, Place, Work
from allo_engine.estimate.price import price
from allo_engine.estimate.rates import Calibration
from allo_engine.model.shape import shape_of
from service.jobs.forecast.counting import LEARNING_ONLY
from tests.offers import RATES
from tests.unit.engine.estimate.test_estimate import SHORT
from tests.unit.engine.pipeline import write_problems

CPU, GPU = Place("cpu", 2**34), Place("cuda", 2**34, bfloat16=True, vllm=True)


@pytest.fixture(scope="module")
def job_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ALLO job whose model's folder has everything but the weights; their shape is told."""
    root = tmp_path_factory.mktemp("job")
    bare = root / "model"
    bare.mkdir()
    for path in model_folder.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    files = {"training_file": write_problems(root / "train"), "validation_file": write_problems(root / "heldout", 4)}
    job = {
        "method": "allo",
        "stages": {"sft": {}, **SHORT},
        "hyperparameters": {"batch_size": 4, "n_epochs": 1},
        "inputs": {"model": str(bare), **{name: str(path) for name, path in files.items()}},
        "shapes": {"model": {**asdict(shape_of(model_folder)), "of_a_later_version": 1}},
        "places": [asdict(CPU), asdict(GPU)],
    }
    path = root / "job.json"
    path.write_text(json.dumps(job))
    return path


@pytest.fixture(scope="module")
def counted(job_file: Path) -> dict[str, Any]:
    """What the child prints."""
    command = [sys.executable, "-m", "allo_engine.estimate", "count", "--config", str(job_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_what_a_child_counts_has_the_price_that_it_has_here(
    counted: dict[str, Any], job_file: Path, model_folder: Path
) -> None:
    given = Job.read(job_file)
    with_weights = replace(given, model=model_folder, shapes={})
    works = [Work.read(work) for work in counted["works"]]
    assert [work.place for work in works] == [CPU, GPU]
    assert works == count(with_weights, [CPU, GPU])
    if here().device == "cpu":  # of whose memory this job wants little
        assert price(works[0], RATES) == estimate(with_weights, RATES)


def test_one_count_has_another_price_at_each_rate(counted: dict[str, Any]) -> None:
    work = Work.read(counted["works"][0])
    slow, fast = (price(work, rates).total() for rates in (replace(RATES, layer_seconds=1.0), RATES))
    assert fast.seconds.expected < slow.seconds.expected / 10
    assert replace(fast, seconds=slow.seconds) == slow, "tokens, memory and disk are the work's"


def test_what_a_worker_is_decides_precision_and_who_decodes(counted: dict[str, Any]) -> None:
    cpu, gpu = ({views[0].stage: views[0] for views in Work.read(work).views} for work in counted["works"])
    assert [cpu["sample"].weight_bytes, gpu["sample"].weight_bytes] == [4, 2]
    assert [cpu["sample"].served, gpu["sample"].served] == [False, True]
    assert [len(cpu["warmup"].forward), len(gpu["warmup"].forward)] == [0, 1], "what 16 bits sampled is scored anew"


def test_where_less_memory_is_free_rows_are_shorter(job_file: Path) -> None:
    given = replace(Job.read(job_file), method="supervised", stages={})
    wide, narrow = count(given, [CPU, Place("cpu", 1_000_000)])
    assert narrow.views[0][0].training.longest < wide.views[0][0].training.longest


def test_rates_losses_and_the_seed_of_training_change_nothing_that_is_counted(job_file: Path) -> None:
    given = replace(Job.read(job_file), places=())
    others = {"learning_rate": 1e-3, "warmup_ratio": 0.5, "schedule": "linear", "max_grad_norm": 2.0, "beta": 0.5}
    others |= {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6}
    assert {*others, "seed"} == LEARNING_ONLY
    changed = replace(given, hyperparameters={**given.hyperparameters, **others})
    assert count(changed, [CPU]) == count(given, [CPU])


def test_workers_of_about_the_same_memory_are_of_one_kind() -> None:
    assert Place.of("cpu", 25_000_000_000, False, False) == Place.of("cpu", 25_000_400_000, False, False)
    assert Place.of("cuda", 24 * 2**30, True, True).free_bytes < 24 * 2**30
    assert Place.of("cpu", 0, False, False).free_bytes > 0


@pytest.mark.parametrize("written", [None, {}, {"forward_flops": 1.0}, {**asdict(RATES), "hash_bytes": float("nan")}])
def test_rates_that_another_version_wrote_are_none(written: Any) -> None:
    assert Calibration.read(written) is None


def test_rates_are_read_as_they_were_written() -> None:
    assert Calibration.read({**asdict(RATES), "of_a_later_version": 1.0}) == RATES


@pytest.mark.parametrize("written", [{}, {"place": asdict(CPU)}, {"views": [[{"stage": 1}]]}])
def test_what_is_no_count_is_refused(written: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Work.read(written)


def test_a_count_survives_json(model_folder: Path) -> None:
    shape = shape_of(model_folder)
    load = Load("sft", "dense", forward=(Passes(1.5, 2, 3, 4, 5),), training=Passes(1, 2, 3, 4, 5), moments="8bit")
    work = Work(GPU, shape, shape, ((load, load),))
    assert Work.read(json.loads(json.dumps(work.write()))) == work


def test_what_cannot_be_counted_is_refused_in_a_sentence(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = json.loads(job_file.read_text())
    path = tmp_path / "job.json"
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"stages": {"no_such_stage": {}}}, 3, "no stage 'no_such_stage'"),
        ({"shapes": {}}, 3, "model.safetensors"),
        ({"method": "ppo"}, 2, "does not name a job"),
        ({"places": [{"device": "cpu"}]}, 2, "free_bytes"),
        ({"shapes": {"model": {"weights": 1}}}, 2, "stored_bytes"),
    ]
    for change, status, reason in wrong:
        path.write_text(json.dumps({**job, **change}))
        assert main(["--config", str(path)]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert reason in said.err.splitlines()[-1]


def test_prices_are_told_without_torch() -> None:
    code = "import sys, allo_engine.estimate.price; "
    code += "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
