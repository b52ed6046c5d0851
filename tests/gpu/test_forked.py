"""A forked stage sees the devices that it was given, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from worker.starting import Launch, Warm

MODULE = "tests.integration.worker.asking_engine"


def seen(warm: Warm, devices: str, folder: Path) -> int:
    """How many devices a program sees that is forked with these."""
    (orders, ours), log = os.pipe(), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    lock, file = os.open(folder, os.O_RDONLY), folder / "said"
    command = (sys.executable, "-m", MODULE, str(file))
    options = ("--grace", "5", "--lease", "600")
    given = {"CUDA_VISIBLE_DEVICES": devices}
    started = warm.start(Launch("stage-x", folder, options, command, orders, log, log, lock, given))
    assert started.wait() == 0
    started.close()
    for descriptor in (orders, ours, log, lock):
        os.close(descriptor)
    return int(json.loads(file.read_text()).get("seen", 0))


def test_a_forked_stage_sees_its_devices_alone(tmp_path: Path) -> None:
    """torch is imported in the process that it is forked from; two stages of one process see different devices."""
    warm = Warm((sys.executable, "-m", MODULE))
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True)  # noqa: S607
    uuids = [line.rpartition("UUID: ")[2].rstrip(")") for line in listed.stdout.splitlines() if "UUID: GPU-" in line]
    every = list(map(str, range(torch.cuda.device_count())))
    assert seen(warm, "", tmp_path) == 0
    assert seen(warm, "0", tmp_path) == 1
    assert seen(warm, ",".join(every), tmp_path) == len(every)
    assert seen(warm, uuids[0], tmp_path) == 1
    warm.close()
