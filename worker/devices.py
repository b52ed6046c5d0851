"""Which device a slot's stages use. No driver is asked: the worker touches no device, its stages do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""What a stage reads it from."""


def devices(setting: str, environment: Mapping[str, str], nodes: Path = Path("/dev")) -> list[str]:
    """The devices of this machine as CUDA names them: those of the setting, else those that the environment leaves
    visible, else one for each /dev/nvidia0, nvidia1, …"""
    named = setting or environment.get(VARIABLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return list(map(str, range(sum(bool(re.fullmatch(r"nvidia\d+", node.name)) for node in nodes.iterdir()))))


def device_of(slot: int, found: list[str]) -> dict[str, str]:
    """What a slot adds to its stages' environment: its device, which it shares where there are more slots."""
    return {VARIABLE: found[slot % len(found)]} if found else {}
