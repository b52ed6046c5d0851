"""Where stages go, in a simulated world of workers that come, go and fill up: every promise is checked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from allo_engine.needs import Needs
from service.jobs.running.flight import Host, Running, Waiting
from service.jobs.running.placement import Device, Offer, able
from tests.offers import GIB
from worker.scheduling import Forget, Give, Policy, Scheduler, Snapshot

CODES = ("a" * 64, "b" * 64)
MOST_WORKERS = 4

sizes = st.integers(0, 6).map(lambda gib: gib * GIB)
packages = st.sets(st.sampled_from(["vllm", "deepspeed"]))
needs = st.builds(
    Needs,
    devices=st.sampled_from([None, None, 0, 1, 1, 2, 3]),
    device_bytes=sizes,
    each_bytes=st.just(GIB),
    spread_bytes=sizes,
    host_bytes=sizes,
    cpu_bytes=sizes,
    packages=packages.map(lambda found: tuple(found & {"vllm"})),
    precision=st.sampled_from(["auto", "auto", "float32", "bfloat16"]),
)
devices = st.lists(st.tuples(st.one_of(st.none(), sizes), st.booleans()), max_size=4).map(
    lambda found: tuple(Device(str(place), "cuda", size, wide) for place, (size, wide) in enumerate(found))
)
offers = st.builds(
    Offer,
    devices=devices,
    cores=st.just(8),
    host_bytes=sizes.map(lambda size: size * 3),
    slots=st.integers(1, 5),
    packages=packages.map(lambda found: dict.fromkeys(found, "1.0")),
    code=st.sampled_from(CODES),
)


@dataclass
class Worker:
    offer: Offer
    beat: int = 0
    runs: dict[Waiting, tuple[str, ...]] = field(default_factory=dict)


def check(offer: Offer, runs: Mapping[Waiting, Sequence[str]]) -> None:
    """No stage lacks anything on this worker, and it is asked for no more than it has."""
    assert len(runs) <= offer.slots
    host = 0
    for stage, taken in runs.items():
        wanted = stage.needs
        assert stage.code == offer.code
        assert set(wanted.packages) <= set(offer.packages)
        assert wanted.precision != "bfloat16" or all(device.bfloat16 for device in offer.devices)
        assert len(set(taken)) == len(taken)
        assert len(taken) == wanted.devices or wanted.devices is None or not offer.devices
        assert bool(taken) == (bool(offer.devices) and wanted.devices != 0)
        host += len(taken) * wanted.host_bytes if taken else max(1, wanted.devices or 1) * wanted.cpu_bytes
    assert host <= offer.host_bytes
    most = max(1, -(-offer.slots // max(1, len(offer.devices))))
    for device in offer.devices:
        sharing = [on_each(stage.needs, offer, len(taken)) for stage, taken in runs.items() if device.name in taken]
        assert len(sharing) <= most
        assert device.bytes is None or sum(sharing) <= device.bytes


def on_each(wanted: Needs, offer: Offer, count: int) -> int:
    shared = wanted.each_bytes + -(-wanted.spread_bytes // count)
    shares = count > 1 and wanted.spread_bytes and "deepspeed" in offer.packages
    return min(wanted.device_bytes, shared) if shares else wanted.device_bytes


class Placing(RuleBasedStateMachine):
    """Stages are claimed as soon as they are given; what they wait for is room."""

    @initialize()
    def begin(self) -> None:
        self.now, self.made = 0.0, 0
        self.workers: dict[str, Worker] = {}
        self.ready: list[Waiting] = []
        self.scheduler = Scheduler(Policy(frozenset(CODES[:1])))

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule(offer=offers)
    def a_worker_comes(self, offer: Offer) -> None:
        self.made += 1
        self.workers[f"worker-{self.made}"] = Worker(offer)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_dies_and_its_stages_are_to_run_again(self, data: st.DataObject) -> None:
        gone = self.workers.pop(data.draw(st.sampled_from(sorted(self.workers))))
        self.ready = sorted([*self.ready, *gone.runs], key=lambda stage: stage.stage_id)

    @rule(wanted=needs, code=st.sampled_from(CODES))
    def submit(self, wanted: Needs, code: str) -> None:
        self.made += 1
        self.ready.append(Waiting(f"stage-{self.made:04}", 0, wanted, code))

    @precondition(lambda self: any(worker.runs for worker in self.workers.values()))
    @rule(data=st.data())
    def a_stage_ends(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers.values() if worker.runs]))
        del worker.runs[data.draw(st.sampled_from(sorted(worker.runs, key=lambda stage: stage.stage_id)))]

    @rule()
    def look(self) -> None:
        self.now += 1
        for worker in self.workers.values():
            worker.beat += 1
        for action in self.scheduler.decide(self.snapshot(), self.now):
            assert not isinstance(action, Forget)
            if isinstance(action, Give):
                self.ready.remove(action.stage)
                self.workers[action.worker].runs[action.stage] = action.devices

    def snapshot(self) -> Snapshot:
        running = tuple(
            Running(stage.stage_id, 1, 0, stage.needs, name, taken)
            for name, worker in self.workers.items()
            for stage, taken in worker.runs.items()
        )
        hosts = tuple(Host(name, worker.beat, worker.offer) for name, worker in self.workers.items())
        return Snapshot(tuple(self.ready), (), running, hosts)

    def able(self, stage: Waiting) -> list[str]:
        same = {name: worker.offer for name, worker in self.workers.items() if worker.offer.code == stage.code}
        return able(stage.needs, same)

    @invariant()
    def every_stage_has_what_it_needs_and_no_worker_is_asked_for_more_than_it_has(self) -> None:
        for worker in getattr(self, "workers", {}).values():
            check(worker.offer, worker.runs)

    @invariant()
    def a_stage_that_an_idle_worker_could_run_waits_for_none(self) -> None:
        """After a look, the first of those that wait for a worker finds none of them idle."""
        if not getattr(self, "workers", {}):
            return
        before = len(self.ready)
        self.look()
        waiting = [stage for stage in self.ready if self.able(stage)]
        assert len(self.ready) <= before
        assert not waiting or all(self.workers[name].runs for name in self.able(waiting[0]))

    def teardown(self) -> None:
        """A stage that some worker could run gets its place, however many smaller ones come while it waits."""
        for stage in [stage for stage in getattr(self, "ready", []) if self.able(stage)]:
            for _ in range(200):
                if stage not in self.ready:
                    break
                for worker in self.workers.values():
                    if worker.runs:
                        del worker.runs[next(iter(worker.runs))]
                for code in CODES:
                    self.submit(Needs(devices=1), code)
                self.look()
            assert stage not in self.ready, "it starved"


TestPlacing = Placing.TestCase
TestPlacing.settings = settings(max_examples=80, stateful_step_count=25)
