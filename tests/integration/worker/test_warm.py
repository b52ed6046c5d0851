"""Stages that are forked from a warm process: as much apart from it, and from each other, as programs of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from tests.integration.worker.conftest import WARM
from tests.integration.worker.house import House, alive
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.test_main import write_task
from tests.waiting import PATIENCE, until
from worker.engine import DEFAULT_COMMAND
from worker.outcome import Failed, Succeeded
from worker.runner import Runner
from worker.starting import Launch, Start, Warm, start_cold
from worker.supervisor import SUPERVISOR_MARK
from worker.sweep import STAGE_MARK, sweep


@pytest.fixture
def house(make_house) -> House:
    return make_house(program=WARM)


def runner(house: House, warm: Warm) -> Runner:
    return Runner(house.settings, house.database, house.store, start=warm.start)


def in_thread(house: House, warm: Warm):
    """A runner on its way with the first ready stage; `join` gives its outcome."""
    outcomes, message = [], house.dispatch()
    thread = threading.Thread(target=lambda: outcomes.append(runner(house, warm).run(*message)))
    thread.start()

    def join():
        thread.join(PATIENCE)
        return outcomes[0]

    return join


def pid_in(house: House, name: str) -> int:
    path = house.control / name
    return int(until(lambda: path.exists() and path.read_text()))


def test_a_forked_trainer_looks_like_a_program_of_its_own(house, warm):
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house, warm)
    trainer = psutil.Process(pid_in(house, "pid"))
    supervisor = trainer.parent()
    assert supervisor
    assert supervisor.ppid() == warm.pid
    assert trainer.cmdline()[:4] == [*WARM, str(house.control)]
    assert trainer.cmdline()[-1] == "", "it was not executed: there is room left"
    assert trainer.cwd() == str(next((house.settings.data_dir / "runs").iterdir()))
    assert os.getsid(trainer.pid) == supervisor.pid
    stage = house.stage(job)
    assert trainer.environ()[STAGE_MARK] == supervisor.environ()[STAGE_MARK] == stage.id
    assert trainer.environ()[SUPERVISOR_MARK].startswith(f"{supervisor.pid}:")
    assert SUPERVISOR_MARK not in supervisor.environ()
    assert STAGE_MARK not in psutil.Process(warm.pid).environ()
    child = psutil.Process(pid_in(house, "child"))
    assert child.environ()[SUPERVISOR_MARK] == trainer.environ()[SUPERVISOR_MARK]
    assert not any(key.startswith("ALLO_") for key in child.environ().keys() - {STAGE_MARK, SUPERVISOR_MARK})
    house.cancel(job)
    join()


def test_a_daemon_that_a_forked_trainer_forks_is_found_by_its_marks(house, warm):
    house.behave(at={"1": "fork"})
    house.submit()
    join = in_thread(house, warm)
    daemon, trainer = pid_in(house, "daemon"), pid_in(house, "pid")
    os.kill(psutil.Process(trainer).ppid(), signal.SIGKILL)
    assert join().code == "killed"
    assert not any(map(alive, (daemon, trainer, pid_in(house, "child"))))
    assert alive(warm.pid)


def test_a_sweep_ends_a_forked_attempt_of_its_stage_and_no_other(house, warm):
    house.behave(at={"1": "fork"})
    house.submit()
    join = in_thread(house, warm)
    daemon, trainer = pid_in(house, "daemon"), pid_in(house, "pid")
    sweep("stage-of-another-job")
    assert alive(daemon)
    assert alive(trainer)
    sweep(psutil.Process(trainer).environ()[STAGE_MARK])
    assert join().code == "killed"
    assert not alive(daemon)
    assert alive(warm.pid)


@pytest.mark.parametrize(("deed", "code"), [("segfault", "crashed"), ("crash", "crashed"), ("oom", "killed")])
def test_a_trainer_that_crashes_hurts_neither_the_warm_process_nor_another_stage(deed, code, make_house, warm):
    calm, wild = make_house("calm", program=WARM), make_house("wild", program=WARM)
    calm.behave(at={"1": "hang"})
    job = calm.submit()
    join = in_thread(calm, warm)
    trainer, process = pid_in(calm, "pid"), warm.pid
    wild.behave(at={"1": f"once:{deed}"})
    wild.submit()
    outcome = runner(wild, warm).run(*wild.dispatch())
    assert isinstance(outcome, Failed)
    assert outcome.code == code
    assert isinstance(runner(wild, warm).run(*wild.dispatch()), Succeeded)
    assert warm.pid == process
    assert alive(trainer)
    calm.cancel(job)
    join()


def test_sigkill_of_the_warm_process_hurts_no_stage_and_the_next_one_has_a_new_one(house):
    warm = Warm(WARM)
    house.behave(at={"1": "hold"})
    job = house.submit()
    join = in_thread(house, warm)
    pid_in(house, "pid")
    dead = warm.pid
    os.kill(dead, signal.SIGKILL)
    until(lambda: not alive(dead))
    house.behave()
    assert join() == Succeeded({"loss": 0.5})
    house.behave(at={"1": "hang"})
    (house.control / "pid").unlink()
    join = in_thread(house, warm)
    trainer = psutil.Process(pid_in(house, "pid"))
    assert psutil.Process(trainer.ppid()).ppid() == warm.pid != dead
    house.cancel(job)
    join()
    assert len(house.starts()) == 2
    warm.close()


def test_a_warm_process_that_cannot_load_leaves_the_stage_a_cold_start(make_house):
    house = make_house()  # its trainer is a file, which no warm process can load
    warm = Warm((sys.executable, "-m", "no_such_engine"))
    house.submit()
    assert runner(house, warm).run(*house.dispatch()) == Succeeded({"loss": 0.5})
    assert warm.pid is None


def test_a_fork_that_cannot_serve_becomes_a_program_of_its_own(house, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    warm = Warm(WARM)
    (house.control / "spoilt").touch()
    house.behave(at={"1": "hang"})
    job = house.submit()
    join = in_thread(house, warm)
    trainer = psutil.Process(pid_in(house, "pid"))
    assert trainer.environ()[SUPERVISOR_MARK].startswith(f"{trainer.ppid()}:")
    assert trainer.cmdline()[-1].endswith("stage.json"), "it was executed: a fork has room left behind it"
    assert psutil.Process(trainer.ppid()).ppid() == warm.pid
    house.cancel(job)
    join()
    assert not alive(trainer.pid)
    warm.close()


def test_a_warm_process_ends_with_its_owner_and_does_not_complain(tmp_path):
    owner = f"import select, time; from worker.starting import Warm; w = Warm({WARM!r}); w.prepare()"
    owner += "; select.select([w._socket], [], []); print(w.pid, flush=True); time.sleep(60)"
    complaints = tmp_path / "complaints"
    with complaints.open("wb") as file, psutil.Popen([sys.executable, "-c", owner], stdout=-1, stderr=file) as process:
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    until(lambda: not alive(pid))
    assert complaints.read_text() == ""


@pytest.mark.parametrize("devices", [1, 2])
def test_a_stage_computes_the_same_bits_forked_and_executed(devices, engine, tmp_path):
    """Of several ranks, the others are forked from the first."""
    inputs = {"model": save_tiny(tmp_path / "model"), "examples": write_problems(tmp_path / "data")}
    config = {"learning_rate": 1e-2, "n_epochs": 3, "batch_size": 4, "devices": devices}
    ways: dict[str, Start] = {"cold": start_cold, "warm": engine.start}
    for name, start in ways.items():
        task = write_task(tmp_path / name, "sft", config, inputs)
        assert _status_of(start, ("sft", "--config", str(task)), tmp_path / name) == 0
    forked, executed = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name / "out").rglob("*.*")}
        for name in ways
    )
    assert any(path.suffix == ".safetensors" for path in forked)
    assert forked == executed


def test_a_forked_program_has_its_devices_before_anything_asks_which_it_sees(tmp_path):
    """It asks when it is made sure that it can reach a device: torch was imported long before, and has not asked."""
    module = "tests.integration.worker.asking_engine"
    warm = Warm((sys.executable, "-m", module))
    for devices in ("3", "0,2"):
        arguments, given = (str(tmp_path / devices),), {"CUDA_VISIBLE_DEVICES": devices}
        assert _status_of(warm.start, arguments, tmp_path, (sys.executable, "-m", module), given) == 0
        said = json.loads((tmp_path / devices).read_text())
        assert said == {"asked": [devices], "torch asked before": False, "visible": devices}
    warm.close()


def _status_of(
    start: Start,
    arguments: tuple[str, ...],
    folder: Path,
    program: tuple[str, ...] = DEFAULT_COMMAND,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run a program, the real engine, as the runner would, to its end."""
    (orders, ours), log = os.pipe(), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    lock = os.open(folder, os.O_RDONLY)
    options = ("--grace", "5", "--lease", "60")
    command = (*program, *arguments)
    started = start(Launch("stage-x", folder, options, command, orders, log, log, lock, environment))
    status = started.wait()
    started.close()
    for descriptor in (orders, ours, log, lock):
        os.close(descriptor)
    return status
