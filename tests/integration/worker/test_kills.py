"""Every stage that trains, the real engine, killed and paused at random moments: it ends in the bits of the run that
was not.

KILLS in the environment says how often each is ended, by a kill and by a pause in turn, KILLS_SEED at which moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from allo_engine.pipeline import Data, PlannedStage, plan
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import whole_input, write_problems
from worker.engine import DEFAULT_COMMAND
from worker.outcome import EXIT_STOPPED
from worker.starting import Launch, Warm

KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("KILLS_SEED", "0"))

TRAINED = ("sft", "warmup", "reward_model", "forget", "improve")

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 1e-2, "n_epochs": 25, "batch_size": 4, "share": 1},
    "sample": {"n": 8, "max_response_tokens": 32},
    "warmup": {"learning_rate": 1e-4, "batch_size": 4},
    "locate": {"forget_ratio": 0.03, "improve_ratio": 0.1},
    "reward_model": {"learning_rate": 1e-3, "n_epochs": 2, "batch_size": 4},
    "forget": {"learning_rate": 1e-4, "batch_size": 2},
    "improve": {"learning_rate": 1e-3, "batch_size": 2},
}
SAVES = {"checkpoint_seconds": 1e-6}


@dataclass(frozen=True)
class Ending:
    """How a stage is ended, so many seconds behind so many things that it said."""

    way: Literal["killed", "paused"]
    said: int
    seconds: float


@dataclass
class Bench:
    """A job's stages, and a warm process that they are forked from."""

    root: Path
    given: Mapping[str, Path]
    stages: Mapping[str, PlannedStage]
    warm: Warm

    def run(self, name: str, root: Path, ending: Ending | None = None) -> int:
        """Run a stage with its outputs in a folder, to its end, or until it is ended; how many things it said."""
        stage, folder = self.stages[name], root / name
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {key: str(whole_input(source, self.root, self.given)) for key, source in stage.inputs.items()}
        config = stage.config.model_dump(mode="json") | (SAVES if name in TRAINED else {})
        task = {"stage": name, "config": config, "inputs": inputs | {"cache": str(self.root / "cache")}}
        task |= {"outputs": str(root / name), "work": str(root / "work" / name)}
        (root / f"{name}.json").write_text(json.dumps(task))
        return self._started((*DEFAULT_COMMAND, name, "--config", str(root / f"{name}.json")), root, ending)

    def _started(self, command: tuple[str, ...], folder: Path, ending: Ending | None) -> int:
        (orders, ours), (heard, words) = os.pipe(), os.pipe()
        log, lock = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(folder, os.O_RDONLY)
        options = ("--grace", "5", "--lease", "600")
        started = self.warm.start(Launch("stage-x", folder, options, command, orders, words, log, lock, {}))
        for descriptor in (orders, words, log, lock):
            os.close(descriptor)
        said = []
        with os.fdopen(heard) as lines:
            for line in lines:  # to the end: then whoever could say more is gone
                said.append(line)
                if ending is not None and len(said) == ending.said:
                    time.sleep(ending.seconds)
                    if ending.way == "killed":
                        signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)  # its program dies with its supervisor
                    else:
                        os.write(ours, b"stop\n")
        status = started.wait()
        started.close()
        os.close(ours)
        ends = {"killed": -signal.SIGKILL, "paused": EXIT_STOPPED}
        assert status in (0, ending and ends[ending.way]), said[-1]
        return len(said)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, engine: Warm) -> Bench:
    """The whole job, undisturbed, but for its last stage, which trains nothing."""
    root = tmp_path_factory.mktemp("killed")
    data = write_problems(root / "data")
    given = {"model": save_tiny(root / "model"), "training_file": data}
    stages = {stage.name: stage for stage in plan("allo", Data("problems"), SETTINGS)}
    return Bench(root, given, stages, engine)


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_trained_stage_that_is_killed_and_paused_at_random_moments_ends_in_the_same_bits(bench: Bench) -> None:
    moments = random.Random(SEED)
    for name in bench.stages:
        said = bench.run(name, bench.root)
        if name not in TRAINED:
            continue
        again = bench.root / "again"
        for kill in range(KILLS):
            way: Literal["killed", "paused"] = "paused" if kill % 2 else "killed"
            ending = Ending(way, moments.randint(1, max(1, said - 2)), moments.uniform(0, 0.01))
            bench.run(name, again, ending)
            print(f"{name}: {ending}", file=sys.stderr)
        bench.run(name, again)
        whole = outputs(bench.root / name)
        assert any(path.endswith(".safetensors") for path in whole)
        assert outputs(again / name) == whole, f"{name}, KILLS_SEED={SEED}"
