"""A worker measures itself while it has nothing to do, and offers what it found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from allo_engine.estimate.rates import Calibration
from service.jobs.running import workers
from tests.clock import Clock
from tests.integration.worker.house import House, alive
from tests.offers import RATES
from tests.waiting import until
from worker.calibrating import LONGEST_SECONDS, Calibrating
from worker.offer import offer
from worker.scheduler import Presence

AFTER = 10

MEASURES = f"""
import json, os, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text() + "x" if path.exists() else "x")
(path.parent / "seen").write_text(os.environ["TMPDIR"] + "," + os.environ.get("CUDA_VISIBLE_DEVICES", "whatever"))
print("a library's remark")
print(json.dumps({asdict(RATES)!r}))
"""
HANGS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
CRASHES = "import sys; sys.exit('no memory')"


class Bench:
    """A worker that has rested as long as a test says, and a measurement that notes its starts."""

    def __init__(self, house: House, program: str = MEASURES, devices: str = "") -> None:
        self.notes, self.clock, self.house = house.control / "starts", Clock(), house
        settings = house.settings.model_copy(update={"devices": devices})
        command = (sys.executable, "-c", program, str(self.notes))
        self.calibrating = Calibrating(settings.data_dir, offer(settings), AFTER, command, self.clock)
        self.tend = partial(self.calibrating.tend, partial(workers.busy, house.database, house.worker))

    def rest(self, seconds: float) -> None:
        self.clock.now += seconds
        self.tend()

    def measured(self) -> Calibration | None:
        self.rest(AFTER)
        return Calibration.read(until(self.tend))

    def starts(self) -> int:
        return len(self.notes.read_text()) if self.notes.exists() else 0


def test_a_worker_that_has_rested_offers_how_fast_it_is(house: House) -> None:
    bench = Bench(house)
    here = Presence(house.database, house.worker, offer(house.settings), 0, measured=bench.tend)
    here.beat()
    assert _offered(house) is None
    bench.rest(AFTER - 1)
    assert bench.starts() == 0
    assert bench.measured() == RATES
    here.beat()
    assert _offered(house) == RATES


def test_what_was_measured_survives_the_worker(house: House) -> None:
    assert Bench(house).measured() == RATES
    again = Bench(house)
    assert again.calibrating.rates == asdict(RATES), "from its first beat on"
    again.rest(AFTER)
    assert again.starts() == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"of": 1, "rates": {}}', "KEPT-OF-ANOTHER", "KEPT-WITHOUT-A-RATE"]
)
def test_what_is_damaged_or_of_another_machine_is_measured_anew(house: House, content: str) -> None:
    assert Bench(house).measured() == RATES
    path = house.settings.data_dir / "calibration.json"
    kept = json.loads(path.read_text())
    of_others = {"KEPT-OF-ANOTHER": {**kept, "of": "another machine"}, "KEPT-WITHOUT-A-RATE": {**kept, "rates": {}}}
    path.write_text(json.dumps(of_others[content]) if content in of_others else content)
    again = Bench(house)
    assert again.calibrating.rates is None
    assert again.measured() == RATES
    assert again.starts() == 2


def test_a_stage_ends_the_measurement_which_begins_anew_at_the_next_rest(house: House) -> None:
    bench = Bench(house, HANGS)
    bench.rest(AFTER)
    pids = [int(pid) for pid in until(lambda: bench.notes.exists() and bench.notes.read_text()).split()]
    job = house.submit()
    house.dispatch()
    bench.tend()
    until(lambda: not any(map(alive, pids)))
    assert not (house.settings.data_dir / "calibration").exists()
    bench.notes.unlink()
    bench.rest(AFTER)
    assert not bench.notes.exists(), "the stage is still there"
    house.cancel(job)
    bench.rest(AFTER - 1)
    assert not bench.notes.exists(), "it has not rested long enough"
    bench.rest(1)
    until(bench.notes.exists)
    bench.calibrating.close()


def test_a_measurement_that_never_ends_is_ended(house: House) -> None:
    bench = Bench(house, HANGS)
    bench.rest(AFTER)
    pids = [int(pid) for pid in until(lambda: bench.notes.exists() and bench.notes.read_text()).split()]
    bench.rest(LONGEST_SECONDS)
    until(lambda: not any(map(alive, pids)))


def test_one_that_fails_is_not_tried_again_before_the_worker_starts_again(house: House) -> None:
    bench = Bench(house, CRASHES)
    bench.rest(AFTER)
    log = house.settings.data_dir / "logs" / "calibration.log"
    until(lambda: (bench.tend(), not (house.settings.data_dir / "calibration").exists())[1])
    assert log.read_text().strip() == "no memory"
    log.unlink()
    bench.rest(10 * AFTER)
    assert not log.exists()
    assert Bench(house).measured() == RATES


def test_a_folder_that_cannot_be_written_ends_nothing_but_the_measurement(house: House) -> None:
    (house.settings.data_dir / "calibration").write_text("in the way")
    bench = Bench(house)
    bench.rest(AFTER)
    bench.rest(AFTER)
    assert bench.starts() == 0
    assert bench.calibrating.rates is None


def test_it_is_measured_where_stages_write_on_the_first_of_the_devices(house: House) -> None:
    assert Bench(house, devices="GPU-7=24,GPU-8=24").measured() == RATES
    scratch, devices = (house.control / "seen").read_text().split(",")
    assert Path(scratch) == house.settings.data_dir.absolute() / "calibration"
    assert devices == "GPU-7"


def test_a_worker_that_is_told_so_measures_nothing(house: House) -> None:
    calibrating = Calibrating(house.settings.data_dir, offer(house.settings), 0, ("/does/not/exist",), Clock())
    assert calibrating.tend(lambda: False) is None


def _offered(house: House) -> Calibration | None:
    (view,) = workers.read_workers(house.database)
    return view.offer.calibration
