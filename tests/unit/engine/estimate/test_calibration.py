from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from allo_engine.estimate.calibration import calibrated, machine, main, measure
from allo_engine.estimate.rates import Calibration, flops
from allo_engine.model.shape import Shape, shape_of
from tests.offers import RATES
from tests.tiny import tiny_model


class Stopwatch:
    """Stands for the measurement, which takes long: each one is twice as fast as the one before."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Calibration:
        self.times += 1
        return replace(RATES, forward_flops=1e11 * 2**self.times)


def test_a_machine_is_measured_once_and_again_where_asked(tmp_path: Path) -> None:
    stopwatch, path = Stopwatch(), tmp_path / "cache" / "calibration.json"
    first = calibrated(path, measured=stopwatch)
    assert calibrated(path, measured=stopwatch) == first
    assert stopwatch.times == 1
    second = calibrated(path, again=True, measured=stopwatch)
    assert second.forward_flops == 2 * first.forward_flops
    assert calibrated(path, measured=stopwatch) == second


def test_machines_that_share_a_cache_keep_their_own_figures(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"another machine": asdict(RATES)}))
    calibrated(path, measured=Stopwatch())
    kept = json.loads(path.read_text())
    assert kept["another machine"] == asdict(RATES)
    assert kept[machine()]["forward_flops"] == 2e11


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", '{"%s": 7}', '{"%s": {"forward_flops": 1.0}}', '{"%s": {"no_such_rate": 1.0}}'],
)
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content.replace("%s", machine()))
    stopwatch = Stopwatch()
    assert calibrated(path, measured=stopwatch).forward_flops == 2e11
    assert stopwatch.times == 1
    assert json.loads(path.read_text())[machine()]["forward_flops"] == 2e11


@pytest.mark.parametrize("value", [0.0, -1.0, "fast", None])
def test_a_rate_that_is_no_positive_number_is_measured_anew(tmp_path: Path, value: object) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({machine(): {**asdict(RATES), "hash_bytes": value}}))
    assert calibrated(path, measured=Stopwatch()).hash_bytes == 1e9


def test_a_worker_is_told_the_rates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = calibrated(tmp_path / "allo" / "calibration.json", measured=Stopwatch())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["--json"]) == 0
    assert Calibration.read(json.loads(capsys.readouterr().out)) == kept


def test_a_measurement_gives_rates_above_zero() -> None:
    rates = measure((32, 64, 2, 1, 64))
    assert all(math.isfinite(rate) and rate > 0 for rate in asdict(rates).values())


def test_flops_by_hand() -> None:
    """One layer of 20 weights, an embedding of 6 that is also the head: a row of 3 tokens, of which 2 are scored."""
    shape = Shape(
        weights=26,
        stored_bytes=104,
        layers=1,
        hidden=2,
        intermediate=0,
        heads=1,
        kv_heads=1,
        head_size=2,
        vocabulary=3,
        tied=True,
        largest=6,
    )
    assert flops(shape, 3, 9, 2) == 2 * 20 * 3 + 4 * 2 * 9 + 2 * 6 * 2
    assert flops(replace(shape, weights=32, tied=False), 3, 9, 2) == flops(shape, 3, 9, 2)


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    model, length = tiny_model(), 48
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")  # torch counts no other attention on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((1, length), 7), use_cache=False)
    assert flops(shape_of(tmp_path), length, length**2, length) == pytest.approx(counter.get_total_flops(), rel=0.02)
