"""A slot's device: each its own, in turn."""

from __future__ import annotations

from pathlib import Path

from worker.devices import device_of, devices


def test_the_devices_are_the_nodes_that_this_machine_has(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert devices("", {}, tmp_path) == ["0", "1", "2"], "CUDA counts what it sees from nought"


def test_what_is_visible_is_taken_before_what_is_there_and_the_setting_before_both(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    visible = {"CUDA_VISIBLE_DEVICES": "2, GPU-5f3c"}
    assert devices("", visible, tmp_path) == ["2", "GPU-5f3c"]
    assert devices("0,3", visible, tmp_path) == ["0", "3"]
    assert devices("", {"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


def test_slots_take_the_devices_in_turn() -> None:
    taken = [device_of(slot, ["0", "GPU-5f3c"])["CUDA_VISIBLE_DEVICES"] for slot in range(5)]
    assert taken == ["0", "GPU-5f3c", "0", "GPU-5f3c", "0"]


def test_without_a_device_nothing_is_hidden(tmp_path: Path) -> None:
    assert device_of(3, devices("", {}, tmp_path)) == {}
