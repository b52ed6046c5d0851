"""Two schedulers that both believe to lead, two workers that come and go, and a broker that drops, doubles, delays and
reorders: whatever was decided is done later, on a world that has moved on, by compare-and-set alone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.jobs.running.flight import Host, Placed, Running, Waiting
from tests.unit.worker.test_scheduling import CODE, POLICY, host
from worker.scheduling import Action, Expire, Forget, Give, Scheduler, Snapshot

WORKERS = ("v", "w")


@dataclass
class Row:
    """A stage as the database holds it."""

    status: str = "ready"
    epoch: int = 0
    beat: int = 0
    worker: str = ""
    commits: int = 0


@dataclass
class Worker:
    """Whether it lives, whether it is registered, and how often it gave a sign of life."""

    lives: bool = True
    known: bool = True
    beat: int = 0


class Rivals(RuleBasedStateMachine):
    """Time is a number; each scheduler reads it on its own, with an offset that never changes, as two hosts do."""

    @initialize(stages=st.integers(1, 3), under_way=st.integers(0, 3))
    def begin(self, stages: int, under_way: int) -> None:
        self.now = 0.0
        self.rows = {f"stage-{number}": Row() for number in range(stages)}
        self.workers = {name: Worker() for name in WORKERS}
        self.mail: list[tuple[str, str, int]] = []
        self.owners: dict[tuple[str, int], str] = {}
        self.rivals = [Scheduler(POLICY), Scheduler(POLICY)]
        self.undone: list[tuple[int, Action]] = []
        self.look(0, at_once=True, broker_works=True)
        while self.mail and len(self.owners) < under_way:
            self.claim(*self.mail.pop())

    @rule()
    def submit(self) -> None:
        self.rows[f"stage-{len(self.rows)}"] = Row()

    @rule(which=st.sampled_from((0, 1)), at_once=st.booleans(), broker_works=st.booleans())
    def look(self, which: int, at_once: bool, broker_works: bool) -> None:
        """What is not done at once is done by and by: the scheduler froze behind its look."""
        for action in self.rivals[which].decide(self.snapshot(), self.clock(which)):
            if at_once:
                self.act(which, action, broker_works)
            else:
                self.undone.append((which, action))

    @precondition(lambda self: self.undone)
    @rule(data=st.data(), broker_works=st.booleans())
    def something_is_done_late(self, data: st.DataObject, broker_works: bool) -> None:
        self.act(*self.undone.pop(data.draw(st.integers(0, len(self.undone) - 1))), broker_works)

    def act(self, which: int, action: Action, broker_works: bool) -> None:
        """As the verbs of the database do: only where all is still as it was when it was decided."""
        match action:
            case Give(stage, worker):
                row = self.rows[stage.stage_id]
                if row.epoch == stage.epoch and row.status in ("ready", "dispatched"):
                    row.status, row.worker = "dispatched", worker
                    if broker_works:
                        self.mail.append((worker, stage.stage_id, stage.epoch))
                        self.rivals[which].rang(action, self.clock(which))
            case Expire(seen):
                row = self.rows[seen.stage_id]
                if (row.status, row.epoch, row.beat) == ("running", seen.epoch, seen.beat):
                    assert (seen.stage_id, seen.epoch) not in self.owners, "one that beat lost its stage"
                    row.status = "ready"
            case Forget(gone):
                worker = self.workers[gone.id]
                worker.known = worker.known and worker.beat != gone.beat

    @rule(seconds=st.integers(1, 4), looks=st.integers(1, 20))
    def time_passes(self, seconds: int, looks: int) -> None:
        for _ in range(looks):
            self.now += seconds
            self.beats()
            for which in (0, 1):
                self.look(which, at_once=True, broker_works=True)

    @rule(seconds=st.integers(100, 10_000))
    def nobody_looks_for_long(self, seconds: int) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(WORKERS), lives=st.booleans())
    def a_worker_dies_or_comes_back(self, name: str, lives: bool) -> None:
        """What a dead one ran is nobody's any more; one that comes back knows nothing of it."""
        if self.workers[name].lives and not lives:
            self.owners = {owner: worker for owner, worker in self.owners.items() if worker != name}
        self.workers[name].lives = lives

    @rule(which=st.sampled_from((0, 1)))
    def a_scheduler_restarts(self, which: int) -> None:
        self.rivals[which] = Scheduler(POLICY)

    @precondition(lambda self: self.mail)
    @rule(data=st.data(), fate=st.sampled_from(("arrives", "is doubled", "is lost")))
    def a_message(self, data: st.DataObject, fate: str) -> None:
        """In whatever order; of a doubled one the other half comes later."""
        message = self.mail.pop(data.draw(st.integers(0, len(self.mail) - 1)))
        if fate == "is doubled":
            self.mail.append(message)
        if fate != "is lost":
            self.claim(*message)

    def claim(self, worker: str, stage_id: str, epoch: int) -> None:
        row = self.rows[stage_id]
        wanted = ("dispatched", epoch, worker)
        if self.workers[worker].lives and (row.status, row.epoch, row.worker) == wanted:
            row.status, row.epoch = "running", epoch + 1
            self.owners[stage_id, row.epoch] = worker

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def an_owner_finishes(self, data: st.DataObject) -> None:
        self.finish(*data.draw(st.sampled_from(sorted(self.owners))))

    def finish(self, stage_id: str, epoch: int) -> None:
        row = self.rows[stage_id]
        if (row.status, row.epoch) == ("running", epoch):
            row.status, row.commits = "succeeded", row.commits + 1

    def beats(self) -> None:
        for worker in self.workers.values():
            if worker.lives:
                worker.known, worker.beat = True, worker.beat + 1
        for stage_id, epoch in self.owners:
            row = self.rows[stage_id]
            row.beat += (row.status, row.epoch) == ("running", epoch)

    def clock(self, which: int) -> float:
        return self.now + 1_000_000 * which

    def snapshot(self) -> Snapshot:
        def having(status: str) -> list[tuple[Waiting, Row]]:
            found = ((Waiting(name, row.epoch, code=CODE), row) for name, row in self.rows.items())
            return [(stage, row) for stage, row in found if row.status == status]

        running = (Running(one.stage_id, row.epoch, row.beat, worker=row.worker) for one, row in having("running"))
        hosts: list[Host] = [host(name, worker.beat) for name, worker in self.workers.items() if worker.known]
        dispatched = (Placed(stage, row.worker) for stage, row in having("dispatched"))
        return Snapshot(tuple(stage for stage, _ in having("ready")), tuple(dispatched), tuple(running), tuple(hosts))

    @invariant()
    def no_stage_is_committed_twice(self) -> None:
        assert all(row.commits <= 1 for row in getattr(self, "rows", {}).values())

    def teardown(self) -> None:
        """Once the faults end, every stage ends well, whatever is still done late."""
        for worker in getattr(self, "workers", {}).values():
            worker.lives = True
        for _ in range(50 * (len(getattr(self, "rows", {})) + 1)):
            if all(row.status == "succeeded" for row in getattr(self, "rows", {}).values()):
                break
            self.time_passes(seconds=4, looks=1)
            while self.undone:
                self.act(*self.undone.pop(), broker_works=True)
            while self.mail:
                self.claim(*self.mail.pop())
            for owner in list(self.owners):
                self.finish(*owner)
        assert all(row.status == "succeeded" for row in getattr(self, "rows", {}).values())


TestRivals = Rivals.TestCase
TestRivals.settings = settings(max_examples=60, stateful_step_count=25)
