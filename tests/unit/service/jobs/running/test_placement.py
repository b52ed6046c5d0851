"""Which worker is the best, and what is said where none is: worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allo_engine.estimate.loads import Place
from allo_engine.needs import Needs
from service.jobs.running.flight import Host, Running, Waiting
from service.jobs.running.placement import Offer, missing
from tests.offers import GIB, an_offer
from worker.scheduling import Give, Policy, Scheduler, Snapshot

CODE = "c" * 64


def of(gib: float, **values: object) -> Needs:
    """A stage that needs so many GiB on one device, or of a machine without devices."""
    return replace(Needs(devices=1, device_bytes=round(gib * GIB), cpu_bytes=round(gib * GIB)), **values)  # type: ignore[arg-type]


def given(
    wanted: list[Needs], running: tuple[Running, ...] = (), **workers: Offer
) -> list[tuple[str, str, tuple[str, ...]]]:
    """(stage, worker, devices) of each of these stages that gets a place; stages are called 0, 1, …"""
    ready = tuple(Waiting(str(place), 0, needs, CODE) for place, needs in enumerate(wanted))
    hosts = tuple(Host(name, 0, replace(offer, code=CODE, codes=())) for name, offer in workers.items())
    actions = Scheduler(Policy(frozenset({CODE}))).decide(Snapshot(ready, (), running, hosts), 0)
    return [(action.stage.stage_id, action.worker, action.devices) for action in actions if isinstance(action, Give)]


def test_a_stage_goes_where_the_least_is_left_over() -> None:
    workers = {"large": an_offer(80), "small": an_offer(24), "tiny": an_offer(8)}
    assert given([of(20)], **workers) == [("0", "small", ("0",))]
    assert given([of(20), of(20)], **workers) == [("0", "small", ("0",)), ("1", "large", ("0",))]
    assert given([of(7), of(60)], **workers) == [("0", "tiny", ("0",)), ("1", "large", ("0",))]


def test_stages_run_beside_one_another_on_devices_of_their_own() -> None:
    assert given([of(20), of(10), of(20)], w=an_offer(24, 24)) == [("0", "w", ("0",)), ("1", "w", ("1",))]


def test_of_unlike_devices_a_stage_takes_the_smallest_that_holds_it() -> None:
    assert given([of(10), of(10)], w=an_offer(80, 24)) == [("0", "w", ("1",)), ("1", "w", ("0",))]


def test_a_stage_takes_as_many_devices_as_it_asks_for() -> None:
    assert given([of(10, devices=2)], w=an_offer(24, 24, 24)) == [("0", "w", ("0", "1"))]
    assert given([of(10, devices=4)], w=an_offer(24, 24, 24)) == []


def test_one_that_takes_what_there_is_shares_it_with_those_that_wait() -> None:
    wide = of(10, devices=None)
    assert given([wide], w=an_offer(24, 24, 24, 24)) == [("0", "w", ("0", "1", "2", "3"))]
    assert given([wide, wide], w=an_offer(24, 24, 24, 24)) == [("0", "w", ("0", "1")), ("1", "w", ("2", "3"))]
    assert given([wide, wide], w=an_offer(24, 24, 24, 24, slots=1)) == [("0", "w", ("0", "1", "2", "3"))]


def test_devices_share_out_what_one_cannot_hold_where_they_can() -> None:
    """60 GiB alone; on two 10 + 80 / 2 = 50 each, on four 10 + 80 / 4 = 30."""
    large = of(60, devices=None, each_bytes=10 * GIB, spread_bytes=80 * GIB, lighter="set train: mask")
    two, four = ("0", "1"), ("0", "1", "2", "3")
    assert given([large], w=an_offer(52, 52, packages=("deepspeed",))) == [("0", "w", two)]
    assert given([large], w=an_offer(52, 52)) == []
    assert given([large], w=an_offer(48, 48, packages=("deepspeed",))) == []
    assert given([large, of(1)], w=an_offer(32, 32, 32, 32, packages=("deepspeed",))) == [("0", "w", four)]
    both = [("0", "w", ("0",)), ("1", "w", ("1",))]
    assert given([large, of(20)], w=an_offer(72, 72, packages=("deepspeed",))) == both
    assert missing("sft", large, [an_offer(52, 52)]) == (
        "Stage sft needs 60 GiB on one device; the largest here has 52: set train: mask, or install deepspeed to share "
        "it out among devices, or start a larger worker."
    )


def test_what_processes_share_out_on_the_host_is_counted_once_and_not_by_one_alone() -> None:
    shared = {"host_bytes": GIB, "host_spread_bytes": 100 * GIB}
    devices, enough, less = an_offer(24, 24, 24, 24), {"host_bytes": 104 * GIB}, {"host_bytes": 103 * GIB}
    four = [("0", "w", ("0", "1", "2", "3"))]
    assert given([of(10, devices=4, **shared)], w=replace(devices, **enough)) == four
    assert given([of(10, devices=4, **shared)], w=replace(devices, **less)) == []
    assert given([of(10, devices=1, **shared)], w=replace(devices, **less)) == [("0", "w", ("0",))]


def test_what_takes_no_package_is_shared_out_by_any_devices() -> None:
    large = of(60, devices=None, each_bytes=10 * GIB, spread_bytes=80 * GIB, sharing="")
    assert given([large], w=an_offer(52, 52)) == [("0", "w", ("0", "1"))]
    assert missing("improve", large, [an_offer(52)]) == (
        "Stage improve needs 60 GiB on one device; the largest here has 52: start a larger worker."
    )


def test_slots_beyond_the_devices_share_them_as_far_as_they_hold() -> None:
    assert given([of(10), of(10), of(10)], w=an_offer(24, slots=2)) == [("0", "w", ("0",)), ("1", "w", ("0",))]
    assert given([of(10), of(20)], w=an_offer(24, slots=2)) == [("0", "w", ("0",))]


def test_what_computes_nothing_leaves_the_devices_to_others() -> None:
    assert given([Needs(devices=0), of(20)], gpu=an_offer(24, slots=2)) == [("0", "gpu", ()), ("1", "gpu", ("0",))]
    assert given([Needs(devices=0)], gpu=an_offer(24), cpu=an_offer()) == [("0", "cpu", ())]


def test_a_machine_without_devices_computes_only_what_no_device_could() -> None:
    busy = (Running("x", 1, 0, of(20), "gpu", ("0",)),)
    assert given([of(20)], busy, gpu=an_offer(24), cpu=an_offer()) == [], "it waits for the device"
    assert given([of(40)], busy, gpu=an_offer(24), cpu=an_offer()) == [("0", "cpu", ())]


def test_a_large_stage_keeps_a_worker_until_it_has_its_place() -> None:
    running = tuple(Running(f"x{name}", 1, 0, of(20), "w", (name,)) for name in "01")
    large, small = of(20, devices=2), of(5)
    assert given([large, small], running, w=an_offer(24, 24)) == []
    assert given([large, small], running[:1], w=an_offer(24, 24)) == [], "the small one would be in its way"
    assert given([large, small], running[:1], w=an_offer(24, 24), v=an_offer(8)) == [("1", "v", ("0",))]
    assert given([large, small], (), w=an_offer(24, 24)) == [("0", "w", ("0", "1"))]


def test_a_package_that_is_asked_for_must_be_installed() -> None:
    workers = {"plain": an_offer(24), "scaled": an_offer(80, packages=("vllm",))}
    assert given([of(10, packages=("vllm",))], **workers) == [("0", "scaled", ("0",))]


@pytest.mark.parametrize(
    ("needs", "workers", "message"),
    [
        (
            of(60, lighter="set train: mask"),
            [an_offer(24), an_offer(16, 16)],
            "Stage warmup needs 60 GiB on one device; the largest here has 24: "
            "set train: mask, or start a larger worker.",
        ),
        (
            of(60, devices=2),
            [an_offer(24, 24)],
            "Stage warmup needs 60 GiB on each of 2 devices; the largest here has 24: start a larger worker.",
        ),
        (
            of(1, devices=4),
            [an_offer(24, 24)],
            "Stage warmup needs 4 devices on one worker; the most here is 2: start a larger worker.",
        ),
        (
            of(60),
            [an_offer(host=3.5)],
            "Stage warmup needs 60 GiB of memory; the largest worker here has 3.5: start a larger worker.",
        ),
        (
            of(1, packages=("vllm",)),
            [an_offer(24), an_offer(24, packages=("trl",))],
            "Stage warmup needs vllm, which no worker here has: install it on one, or set another way.",
        ),
        (of(1), [], "No worker is there yet: `allo up` starts one, and so does `python -m worker`."),
        (of(24), [an_offer(24)], ""),
        (of(60), [an_offer(None)], ""),
        (of(60), [an_offer(24), an_offer(host=64)], ""),
    ],
)
def test_what_no_worker_has_is_said(needs: Needs, workers: list[Offer], message: str) -> None:
    assert missing("warmup", needs, workers) == message


@pytest.mark.parametrize(
    ("offer", "place"),
    [
        (an_offer(host=16), Place("cpu", round(15.5 * GIB))),
        (an_offer(host=16, slots=2), Place("cpu", round(7.5 * GIB))),
        (an_offer(80, 24, packages=("vllm",)), Place("cuda", round(23.25 * GIB), bfloat16=True, vllm=True)),
        (an_offer(80, slots=2), Place("cuda", round(39.25 * GIB), bfloat16=True)),
        (an_offer(None), an_offer(24).place),
    ],
)
def test_work_is_counted_for_a_slots_share_of_the_least_device_or_of_the_host(offer: Offer, place: Place) -> None:
    assert offer.place == place
    assert replace(offer, rates={"forward_flops": 1e12}).place == place, "how fast it is decides nothing"


def test_offers_and_needs_are_read_as_they_were_written() -> None:
    offer, needs = an_offer(24, None, packages=("vllm",)), of(3, packages=("trl",), devices=None)
    assert Offer.read(offer.write()) == offer
    assert Needs.read(needs.write()) == needs
    assert Offer.read(offer.write() | {"since": "a later version"}) == offer
    earlier = offer.write()
    del earlier["rates"], earlier["codes"]
    assert Offer.read(earlier) == replace(offer, codes=())
    assert Offer.read(earlier).runs == (offer.code,), "stages were planned for a whole engine then"
    assert Needs.read(needs.write() | {"since": "a later version"}) == needs
    assert Needs.read(None) == Needs()
