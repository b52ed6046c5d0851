"""Which worker has what a stage needs: pure, over what workers offer and what is under way on them.

A stage goes where the least is left over. It sits on devices of its own: as many stages share a device as the worker
has slots for each, one as a rule, and together they never need more than it holds. What computes goes to a worker
without accelerators only where no worker with them could ever take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from allo_engine.estimate.loads import Place
from allo_engine.estimate.rates import Calibration
from allo_engine.needs import Needs, known

_UNKNOWN_BYTES = 24 * 2**30
"""For estimates: a device whose memory nobody could say is taken for one of so much."""


@dataclass(frozen=True)
class Device:
    """An accelerator: its name for CUDA, what it is, its memory in bytes (None where nobody could say), and whether it
    computes in bfloat16."""

    name: str
    kind: str = "cuda"
    bytes: int | None = None
    bfloat16: bool = True


@dataclass(frozen=True)
class Offer:
    """What a worker has. At most `slots` stages run on it at once; `packages` holds versions by name, `code`
    is the engine's version, `rates` how fast it is (the engine's Calibration), once that was measured, `codes` are
    those of the stages that it runs (see the engine's source.py), and `free_bytes` what its disk has left, if it says
    so."""

    devices: tuple[Device, ...]
    cores: int
    host_bytes: int
    slots: int
    packages: Mapping[str, str]
    code: str
    rates: Mapping[str, float] | None = None
    codes: tuple[str, ...] = ()
    free_bytes: int = 0

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Offer:
        """As `write` wrote it, here or in another version."""
        devices = tuple(Device(**known(Device, device)) for device in written["devices"])
        return cls(**{**known(cls, written), "devices": devices, "codes": tuple(written.get("codes", ()))})

    def write(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def runs(self) -> tuple[str, ...]:
        """What a stage may be planned for to run on it: a code of a stage. A worker of a version before there were such
        runs what was planned for its whole engine."""
        return self.codes or (self.code,)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What its stages can compute in."""
        narrow = all(device.bfloat16 for device in self.devices)
        return ("float32", "bfloat16") if narrow else ("float32",)

    @property
    def calibration(self) -> Calibration | None:
        """How fast it is; None where nobody has measured that yet, or another version has."""
        return Calibration.read(self.rates)

    @property
    def place(self) -> Place:
        """The kind of worker that it is, for which work is counted: a stage has a slot's share of its least device, or
        of its memory where it has none."""
        vllm = "vllm" in self.packages
        if not self.devices:
            return Place.of("cpu", self.host_bytes // self.slots, False, vllm)
        least = min(device.bytes or _UNKNOWN_BYTES for device in self.devices)
        return Place.of("cuda", least // self.stages_a_device, "bfloat16" in self.precisions, vllm)

    @property
    def stages_a_device(self) -> int:
        """How many stages share a device where there are more slots than devices."""
        return max(1, -(-self.slots // max(1, len(self.devices))))


@dataclass(frozen=True)
class Held:
    """What a stage that is under way has of its worker: its needs, and the names of its devices."""

    needs: Needs
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Seat:
    """A place on a worker. `left` orders places: bytes of the seat's devices that stay unused, whole devices that stay
    free, bytes of the host."""

    devices: tuple[str, ...]
    left: tuple[int, int, int]


def seat(needs: Needs, offer: Offer, held: Sequence[Held] = (), rivals: int = 1) -> Seat | None:
    """Where a stage would sit beside those that are under way; None where there is no room. One that takes as many
    devices as there are shares those that are free evenly with its `rivals`, itself included."""
    if not _has(needs, offer) or len(held) >= offer.slots:
        return None
    host = offer.host_bytes - sum(_host_bytes(one.needs, len(one.devices)) for one in held)
    for count in _counts(needs, offer, held, min(rivals, offer.slots - len(held))):
        free, left = _free_devices(needs, offer, held, count), host - _host_bytes(needs, count)
        if count <= len(free) and left >= 0:
            taken = sorted(free, key=lambda device: (device.bytes or 0, device.name))[:count]
            unused = sum(device.bytes or 0 for device in taken)
            return Seat(tuple(device.name for device in taken), (unused, len(free) - count, left))
    return None


def fits(needs: Needs, offer: Offer, held: Sequence[Held], devices: Sequence[str]) -> bool:
    """Whether a stage may sit on these very devices beside those that are under way. `seat` chose them; meanwhile more
    may be under way."""
    free = {device.name for device in _free_devices(needs, offer, held, len(devices))}
    others = sum(_host_bytes(one.needs, len(one.devices)) for one in held)
    enough = others + _host_bytes(needs, len(devices)) <= offer.host_bytes
    return _has(needs, offer) and len(held) < offer.slots and enough and free.issuperset(devices)


def able(needs: Needs, offers: Mapping[str, Offer]) -> list[str]:
    """The workers that could run a stage if nothing else were under way."""
    found = [name for name, offer in offers.items() if seat(needs, offer) is not None]
    with_devices = [name for name in found if offers[name].devices]
    return with_devices if with_devices and needs.devices != 0 else found


def _has(needs: Needs, offer: Offer) -> bool:
    precise = needs.precision in ("auto", *offer.precisions)
    return precise and all(package in offer.packages for package in needs.packages)


def _free_devices(needs: Needs, offer: Offer, held: Sequence[Held], count: int) -> list[Device]:
    """The devices with room for a stage that takes so many; `bytes` is what it would leave of each."""
    wanted, free = _device_bytes(needs, offer, count), []
    for device in offer.devices:
        there = [one for one in held if device.name in one.devices]
        taken = sum(_device_bytes(one.needs, offer, len(one.devices)) for one in there)
        left = None if device.bytes is None else device.bytes - taken - wanted
        if len(there) < offer.stages_a_device and (left is None or left >= 0):
            free.append(Device(device.name, device.kind, left, device.bfloat16))
    return free


def _counts(needs: Needs, offer: Offer, held: Sequence[Held], rivals: int) -> list[int]:
    """How many accelerators the stage may take, the best first. Of one that takes what there is: its fair share, else
    the most below it, else the fewest above it; one alone where stages share devices."""
    if not offer.devices:
        return [0]
    if needs.devices is not None:
        return [needs.devices]
    if offer.stages_a_device > 1:
        return [1]
    idle = len(offer.devices) - sum(len(one.devices) for one in held)
    fair = max(1, idle // rivals)
    return [*range(fair, 0, -1), *range(fair + 1, idle + 1)]


def _device_bytes(needs: Needs, offer: Offer, count: int) -> int:
    """Memory of each of so many accelerators that a stage takes. Several share out what they can."""
    shares = not needs.sharing or needs.sharing in offer.packages
    if count < 2 or not needs.spread_bytes or not shares:
        return needs.device_bytes
    return min(needs.device_bytes, needs.each_bytes + -(-needs.spread_bytes // count))


def _host_bytes(needs: Needs, count: int) -> int:
    """Memory of the host that a stage takes with so many accelerators. Without any, it computes on the host."""
    if not count:
        return needs.cpu_bytes * max(1, needs.devices or 1)
    return needs.host_bytes * count + (needs.host_spread_bytes if count > 1 else 0)


def missing(stage: str, needs: Needs, offers: Sequence[Offer]) -> str:
    """What a stage needs that no worker has, and what would help; empty where one has all of it."""
    if any(seat(needs, offer) is not None for offer in offers):
        return ""
    if not offers:
        return "No worker is there yet: `allo up` starts one, and so does `python -m worker`."
    packages = [name for name in needs.packages if not any(name in offer.packages for offer in offers)]
    if packages:
        wanted = " and ".join(packages)
        return f"Stage {stage} needs {wanted}, which no worker here has: install it on one, or set another way."
    if not any(needs.precision in ("auto", *offer.precisions) for offer in offers):
        return f"Stage {stage} needs devices that compute in {needs.precision}: set precision: float32."
    sharing = [replace(offer, packages={**offer.packages, needs.sharing: ""}) for offer in offers]
    shared = any(seat(needs, offer) is not None for offer in sharing)
    helps = [
        needs.lighter,
        f"install {needs.sharing} to share it out among devices" if shared else "",
        "start a larger worker",
    ]
    return f"Stage {stage} needs {_too_much(needs, offers)}: {', or '.join(filter(None, helps))}."


def _too_much(needs: Needs, offers: Sequence[Offer]) -> str:
    """The amount that is too large for every worker, against the largest that there is."""
    most = max(len(offer.devices) for offer in offers)
    largest = max((device.bytes or 0 for offer in offers for device in offer.devices), default=0)
    if needs.devices and most and needs.devices > most:
        return f"{needs.devices} devices on one worker; the most here is {most}"
    if needs.devices != 0 and largest and needs.device_bytes > largest:
        where = "one device" if (needs.devices or 1) == 1 else f"each of {needs.devices} devices"
        return f"{_gib(needs.device_bytes)} GiB on {where}; the largest here has {_gib(largest)}"
    host = max(offer.host_bytes for offer in offers)
    wanted = min(_host_bytes(needs, (needs.devices or 1) if offer.devices else 0) for offer in offers)
    if wanted > host:
        return f"{_gib(wanted)} GiB of memory; the largest worker here has {_gib(host)}"
    return f"{_gib(wanted)} GiB of memory and {', '.join(needs.packages) or 'its devices'} on one worker; none has all"


def _gib(count: int) -> str:
    """Bytes as people say them: 60, 3.5, 0.4."""
    gibibytes = count / 2**30
    return f"{gibibytes:.0f}" if gibibytes >= 10 else f"{gibibytes:.1f}"
