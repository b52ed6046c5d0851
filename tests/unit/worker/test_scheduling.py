"""The scheduler's core, alone and in a simulated world whose broker and workers fail in every way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.jobs.running.flight import Host, Placed, Running, Waiting
from tests.offers import an_offer
from worker.scheduling import Expire, Forget, Give, PlanAnew, Policy, Scheduler, Snapshot

CODE, OTHER_CODE = "a" * 64, "b" * 64
POLICY = Policy(frozenset({CODE}), ring_again=60, lease=60)
SLOTS = 2
A, B, C = (Waiting(f"stage-{letter}", 0, code=CODE) for letter in "abc")


def host(name: str = "w", beat: int = 0, **offered) -> Host:
    return Host(name, beat, an_offer(**{"slots": SLOTS, "code": CODE, **offered}))


def seen(ready=(), dispatched=(), running=(), hosts=None, now: int = 0) -> Snapshot:
    """What is seen at `now` where, unless told otherwise, a worker of two slots beats."""
    placed = tuple(stage if isinstance(stage, Placed) else Placed(stage, "w") for stage in dispatched)
    return Snapshot(tuple(ready), placed, tuple(running), (host(beat=now),) if hosts is None else tuple(hosts))


def test_ready_stages_are_given_in_their_order_while_slots_are_free():
    scheduler = Scheduler(POLICY)
    assert scheduler.decide(seen([A, B, C]), 0) == [Give(A, "w"), Give(B, "w")]
    scheduler.rang(Give(B, "w"), 0)
    assert scheduler.decide(seen([C], [B], [Running("stage-a", 1, 0, worker="w")]), 1) == []


def test_an_unclaimed_stage_is_rung_for_again_after_a_minute():
    scheduler = Scheduler(POLICY)
    assert scheduler.decide(seen([A]), 0) == [Give(A, "w")]
    scheduler.rang(Give(A, "w"), 0)
    assert scheduler.decide(seen([], [A], now=59), 59) == []
    assert scheduler.decide(seen([], [A], now=60), 60) == [Give(A, "w")]


def test_an_unclaimed_stage_goes_to_another_worker_that_has_what_it_needs():
    scheduler, both = Scheduler(POLICY), [host("v"), host("w")]
    scheduler.decide(seen([], [A], hosts=both), 0)
    scheduler.rang(Give(A, "w"), 0)
    both = [host("v", 1), host("w", 1)]
    assert scheduler.decide(seen([], [A], hosts=both), 60) == [Give(A, "v")]


def test_a_stage_whose_worker_has_gone_is_placed_anew_at_once():
    scheduler = Scheduler(POLICY)
    scheduler.decide(seen([], [A]), 0)
    scheduler.rang(Give(A, "w"), 0)
    assert scheduler.decide(seen([], [A], hosts=[host("v")]), 1) == [Give(A, "v")]
    assert scheduler.decide(seen([], [A], hosts=[]), 2) == []


def test_a_worker_that_gives_no_sign_of_life_is_forgotten_after_a_lease_and_its_stage_placed_anew():
    scheduler = Scheduler(POLICY)
    scheduler.decide(seen([], [A], hosts=[host("w"), host("v")]), 0)
    scheduler.rang(Give(A, "w"), 0)
    dead = host("w")
    looks = [scheduler.decide(seen([], [A], hosts=[dead, host("v", beat=now)]), now) for now in range(4, 61, 4)]
    assert looks == [[]] * 14 + [[Forget(dead), Give(A, "v")]]


def test_a_ring_that_did_not_reach_the_broker_is_tried_again_at_once():
    scheduler = Scheduler(POLICY)
    assert scheduler.decide(seen([A]), 0) == [Give(A, "w")]
    assert scheduler.decide(seen([], [A]), 1) == [Give(A, "w")]


def test_a_new_scheduler_rings_for_what_an_earlier_one_gave_where_it_was_given():
    placed = [Placed(A, "w", ("1",)), Placed(B, "w", ("0",))]
    assert Scheduler(POLICY).decide(seen([], placed), 0) == [Give(A, "w", ("1",)), Give(B, "w", ("0",))]


def test_a_silent_owner_loses_its_stage_after_a_lease_and_not_before():
    scheduler = Scheduler(POLICY)
    silent = Running("stage-a", 1, 7, worker="w")
    looks = [scheduler.decide(seen(running=[silent], now=now), now) for now in range(0, 61, 4)]
    assert looks == [[]] * 15 + [[Expire(silent)]]


def test_a_beat_renews_the_lease():
    scheduler = Scheduler(POLICY)
    for now in range(0, 600, 4):
        assert scheduler.decide(seen(running=[Running("stage-a", 1, now // 50)], now=now // 50), now) == []


def test_time_in_which_nobody_looked_is_no_evidence():
    scheduler = Scheduler(POLICY)
    running = seen(running=[Running("stage-a", 1, 7)])
    assert scheduler.decide(running, 0) == []
    assert scheduler.decide(running, 3600) == []


def test_a_stage_goes_to_workers_of_its_own_code_alone():
    foreign = Waiting("stage-a", 0, code=OTHER_CODE)
    hosts = [host("v"), host("w", code=OTHER_CODE)]
    assert Scheduler(POLICY).decide(seen([foreign], hosts=hosts), 0) == [Give(foreign, "w")]


def test_a_stage_goes_to_any_worker_that_has_its_code_whatever_else_of_the_engine_differs():
    stages = [Waiting("stage-a", 0, code="evaluate, later"), Waiting("stage-b", 0, code="sft")]
    offers = {"older": ("sft", "evaluate"), "newer": ("sft", "evaluate, later")}
    hosts = [Host(name, 0, replace(an_offer(slots=1, code=name), codes=codes)) for name, codes in offers.items()]
    given = Scheduler(Policy(frozenset(offers["newer"]))).decide(seen(stages, hosts=hosts), 0)
    assert {give.stage: give.worker for give in given} == dict(zip(stages, ("newer", "older"), strict=True))


def test_a_stage_whose_code_no_worker_runs_is_planned_anew_where_they_run_ours():
    foreign = Waiting("stage-a", 0, code=OTHER_CODE)
    assert Scheduler(POLICY).decide(seen([foreign]), 0) == [PlanAnew(foreign)]
    assert Scheduler(POLICY).decide(seen([foreign], hosts=[]), 0) == []
    assert Scheduler(POLICY).decide(seen([foreign], hosts=[host(code="c" * 64)]), 0) == []


@dataclass
class Row:
    """A stage as the database holds it."""

    status: str = "ready"
    epoch: int = 0
    beat: int = 0
    commits: int = 0


class World(RuleBasedStateMachine):
    """Rows with compare-and-set, a broker that drops, doubles, delays and reorders, workers that die and freeze."""

    @initialize(stages=st.integers(1, 3), under_way=st.integers(0, 3))
    def begin(self, stages: int, under_way: int) -> None:
        self.now = 0.0
        self.rows = {f"stage-{number}": Row() for number in range(stages)}
        self.mail: list[Waiting] = []
        self.owners: dict[Waiting, bool] = {}  # (stage, epoch) → whether its heartbeats arrive
        self.scheduler = Scheduler(POLICY)
        self.look(broker_works=True)
        while self.mail and len(self.owners) < under_way:
            self.claim(self.mail.pop())

    @rule()
    def submit(self) -> None:
        self.rows[f"stage-{len(self.rows)}"] = Row()

    @rule(broker_works=st.booleans())
    def look(self, broker_works: bool) -> None:
        for action in self.scheduler.decide(self.snapshot(), self.now):
            match action:
                case Give(stage):
                    assert self.rows[stage.stage_id].status in ("ready", "dispatched")
                    self.rows[stage.stage_id].status = "dispatched"
                    self.ring(action, broker_works)
                case Expire(stage):
                    assert not self.owners[Waiting(stage.stage_id, stage.epoch, code=CODE)], (
                        "a beating owner lost its stage"
                    )
                    self.rows[stage.stage_id].status = "ready"

    def ring(self, given: Give, broker_works: bool) -> None:
        if broker_works:
            self.mail.append(given.stage)
            self.scheduler.rang(given, self.now)

    @rule(seconds=st.integers(1, 4), looks=st.integers(1, 20))
    def time_passes(self, seconds: int, looks: int) -> None:
        for _ in range(looks):
            self.now += seconds
            self.beats()
            self.look(broker_works=True)

    def beats(self) -> None:
        for owner, beating in self.owners.items():
            row = self.rows[owner.stage_id]
            if beating and row.status == "running" and row.epoch == owner.epoch:
                row.beat += 1

    @rule(seconds=st.integers(100, 10_000))
    def the_scheduler_freezes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def the_scheduler_restarts(self) -> None:
        self.scheduler = Scheduler(POLICY)

    @precondition(lambda self: self.mail)
    @rule(data=st.data(), twice=st.booleans())
    def a_message_arrives(self, data: st.DataObject, twice: bool) -> None:
        stage = self.mail.pop(data.draw(st.integers(0, len(self.mail) - 1)))
        for _ in range(1 + twice):
            self.claim(stage)

    @precondition(lambda self: self.mail)
    @rule(data=st.data())
    def a_message_is_lost(self, data: st.DataObject) -> None:
        self.mail.pop(data.draw(st.integers(0, len(self.mail) - 1)))

    def claim(self, stage: Waiting) -> None:
        row = self.rows[stage.stage_id]
        if row.status == "dispatched" and row.epoch == stage.epoch:
            row.status, row.epoch = "running", row.epoch + 1
            self.owners[Waiting(stage.stage_id, row.epoch, code=CODE)] = True

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def an_owner_dies_or_freezes(self, data: st.DataObject) -> None:
        self.owners[data.draw(st.sampled_from(sorted(self.owners, key=str)))] = False

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def an_owner_finishes_however_late(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.owners, key=str))))

    def finish(self, owner: Waiting) -> None:
        row = self.rows[owner.stage_id]
        if row.status == "running" and row.epoch == owner.epoch:
            row.status, row.commits = "succeeded", row.commits + 1

    def snapshot(self) -> Snapshot:
        def having(status: str) -> tuple[Waiting, ...]:
            return tuple(Waiting(id, row.epoch, code=CODE) for id, row in self.rows.items() if row.status == status)

        under_way = ((id, row) for id, row in self.rows.items() if row.status == "running")
        running = [Running(id, row.epoch, row.beat, worker="w") for id, row in under_way]
        return seen(having("ready"), having("dispatched"), running, now=int(self.now))

    @invariant()
    def no_stage_is_committed_twice(self) -> None:
        assert all(row.commits <= 1 for row in getattr(self, "rows", {}).values())

    @invariant()
    def no_more_is_under_way_than_there_are_slots(self) -> None:
        under_way = [row for row in getattr(self, "rows", {}).values() if row.status in ("dispatched", "running")]
        assert len(under_way) <= SLOTS

    def teardown(self) -> None:
        """Once the faults end, every stage ends well: within three minutes for each one that waits."""
        for _ in range(50 * (len(getattr(self, "rows", {})) + 1)):
            self.time_passes(seconds=4, looks=1)
            while self.mail:
                self.claim(self.mail.pop())
            for owner in [owner for owner, beating in self.owners.items() if beating]:
                self.finish(owner)
        assert all(row.status == "succeeded" for row in self.rows.values())


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40)
