"""Which devices a worker has, and what a stage is shown of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.jobs.running.placement import Device
from service.settings import Settings
from worker.devices import devices, visible

GIB = 2**30
SMI = """#!/bin/sh
echo "0, GPU-5f3c-11, NVIDIA H100 80GB HBM3, 81559, 9.0"
echo "1, GPU-77aa-22, Tesla V100-SXM2-16GB, 16384, 7.0"
"""


def names(found: tuple[Device, ...]) -> list[str]:
    return [device.name for device in found]


def test_the_devices_are_the_nodes_that_this_machine_has(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert names(devices("", {}, tmp_path)) == ["0", "1", "2"], "CUDA counts what it sees from nought"


def test_what_is_visible_is_taken_before_what_is_there_and_the_setting_before_both(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    shown = {"CUDA_VISIBLE_DEVICES": "2, GPU-5f3c"}
    assert names(devices("", shown, tmp_path)) == ["2", "GPU-5f3c"]
    assert names(devices("0,3", shown, tmp_path)) == ["0", "3"]
    assert devices("", {"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_the_driver_says_what_a_device_is_and_the_setting_what_of_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second, third = devices("GPU-77aa, 0=40, 7", {})
    assert first == Device("GPU-77aa", "Tesla V100-SXM2-16GB", 16 * GIB, bfloat16=False)
    assert second == Device("0", "NVIDIA H100 80GB HBM3", 40 * GIB, bfloat16=True)
    assert third == Device("7", bytes=None), "the driver knows no such device"


@pytest.mark.parametrize("devices", ["0=x", "=", "0=24=1", "0,1=-4"])
def test_a_setting_that_names_no_devices_is_refused(devices: str) -> None:
    with pytest.raises(ValidationError):
        Settings(devices=devices)


def test_a_stage_sees_its_own_devices_or_none_and_without_any_nothing_is_hidden() -> None:
    assert visible(["1", "GPU-5f3c"]) == {"CUDA_VISIBLE_DEVICES": "1,GPU-5f3c"}
    assert visible([]) == {"CUDA_VISIBLE_DEVICES": ""}
    assert visible(None) == {}
