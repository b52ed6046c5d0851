"""What workers of the tests have."""

from __future__ import annotations

from allo_engine.estimate.rates import Calibration
from allo_engine.pipeline import stage_codes
from allo_engine.source import code_version
from service.jobs.running.placement import Device, Offer

GIB = 2**30
RATES = Calibration(1e11, 1e11, 1e10, 1e10, 1e-3, 1e9, 1e9, 1e9)
"""How fast they are."""


def an_offer(
    *devices: float | None, slots: int = 0, host: float = 64, packages: tuple[str, ...] = (), code: str = ""
) -> Offer:
    """A worker with devices of so many GiB each (None: nobody knows), named 0, 1, …, and so many GiB of its own."""
    found = tuple(
        Device(str(place), bytes=None if gib is None else round(gib * GIB)) for place, gib in enumerate(devices)
    )
    versions = dict.fromkeys(packages, "1.0")
    codes = () if code else tuple(stage_codes())
    sizes = (8, round(host * GIB), slots or len(devices) or 1)
    return Offer(found, *sizes, versions, code or code_version(), codes=codes)
