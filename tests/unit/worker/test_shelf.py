"""Bases in memory: loaded where there is room, let go where there is none, gone before a stage begins."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.jobs.registry.served import Served
from service.settings import Settings
from service.storage import open_store
from tests.offers import an_offer
from tests.waiting import PATIENCE, until
from worker import turns
from worker.shelf import MOST_BASES, Shelf

ANSWERS = """
import json, os, sys
say = lambda **line: print(json.dumps(line), flush=True)
if open(sys.argv[1] + "/config.json").read() == "bad":
    say(type="failed", message="it is bad")
    sys.exit()
say(type="ready")
for line in sys.stdin:
    asked = json.loads(line)
    if "forget" in asked:
        open(sys.argv[1] + "/forgotten", "w").write(asked["forget"])
    elif asked["prompt"] == "crash":
        os._exit(1)
    else:
        say(id=asked["id"], type="began", prompt_tokens=os.getpid())
        if asked["prompt"] != "wait":
            say(id=asked["id"], type="done")
"""


class Bench:
    """A shelf whose models answer at once, but for `wait`, and what those heard who asked."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder)
        self.store, self.heard = open_store(self.settings.store), defaultdict[str, list[Mapping[str, Any]]](list)
        self.deaf: set[str] = set()
        command = (sys.executable, "-c", ANSWERS)
        self.shelf = Shelf(self.settings, self.store, an_offer(host=2**40), self._tell, command)

    def _tell(self, name: str, line: Mapping[str, Any]) -> bool:
        self.heard[name].append(line)
        return name not in self.deaf

    def base(self, name: str, config: str = "") -> Served:
        blob = self.store.put_stream([config.encode()])
        return Served(name, (("config.json", blob.sha256, blob.size),), None)

    def ask(self, base: Served, prompt: str) -> list[Mapping[str, Any]]:
        """What it hears, once its answer has begun or failed."""
        name = f"question-{len(self.heard)}"

        def got() -> Any:
            self.shelf.tidy()
            return self.shelf.got(base)

        self.shelf.ask(until(got), name, base, {"prompt": prompt})
        until(lambda: self.heard[name])
        return self.heard[name]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.shelf.clear(("stopped", "It stops."))
    with turns.training(tmp_path, PATIENCE):
        pass


def test_several_bases_stand_side_by_side_and_the_one_asked_longest_ago_makes_room(bench: Bench) -> None:
    bases = [bench.base(str(number)) for number in range(MOST_BASES + 1)]
    pids = [bench.ask(base, "hello")[0]["prompt_tokens"] for base in bases[:MOST_BASES]]
    assert bench.ask(bases[0], "hello")[0]["prompt_tokens"] == pids[0]
    bench.ask(bases[-1], "hello")
    assert bench.shelf.bases == [base.base for base in (bases[0], *bases[2:])]


def test_one_that_answers_makes_no_room(bench: Bench) -> None:
    bases = [bench.base(str(number)) for number in range(MOST_BASES + 1)]
    for base in bases[:MOST_BASES]:
        bench.ask(base, "wait")
    assert bench.shelf.got(bases[-1]) is None
    assert bench.shelf.questions == MOST_BASES


def test_a_model_that_crashes_or_cannot_be_loaded_tells_whoever_waits_and_is_loaded_anew(bench: Bench) -> None:
    base = bench.base("base")
    heard = bench.ask(base, "wait")
    crashed = bench.ask(base, "crash")
    until(lambda: heard[-1]["type"] == "error")
    assert (heard[-1]["code"], crashed[-1]["code"]) == ("model_failed", "model_failed")
    assert bench.ask(base, "hello")[0]["type"] == "began"
    assert "it is bad" in bench.ask(bench.base("bad", "bad"), "hello")[-1]["message"]


def test_who_asks_a_model_that_has_just_ended_is_told(bench: Bench) -> None:
    base = bench.base("base")
    bench.ask(base, "crash")
    model = bench.shelf._models["base"]
    until(lambda: model.over)
    bench.shelf.ask(model, "late", base, {"prompt": "hello"})
    assert bench.heard["late"][-1]["code"] == "model_failed"


def test_the_model_is_told_that_nobody_waits(bench: Bench) -> None:
    bench.deaf.add("question-0")
    bench.ask(bench.base("base"), "wait")
    until((bench.settings.data_dir / "serving" / "base" / "forgotten").exists)
    assert bench.shelf.questions == 0


def test_a_model_that_nobody_has_asked_for_long_is_let_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ask(bench.base("base"), "hello")
    bench.shelf._settings = bench.settings.model_copy(update={"serve_idle_seconds": 0.0})
    until(lambda: bench.shelf.tidy() or not bench.shelf.bases)
    until(lambda: not turns.answers(tmp_path))


def test_no_model_is_loaded_beside_a_stage_and_no_stage_begins_beside_a_model(bench: Bench) -> None:
    data_dir, base = bench.settings.data_dir, bench.base("base")
    with turns.training(data_dir, 0), turns.training(data_dir, 0):
        assert bench.shelf.got(base) is None
    bench.ask(base, "wait")
    begun = threading.Event()

    def stage() -> None:
        with turns.training(data_dir, PATIENCE):
            begun.set()

    thread = threading.Thread(target=stage)
    thread.start()
    assert turns.answers(data_dir)
    assert not begun.is_set()
    bench.shelf.clear(("training_first", "A stage has come."))
    thread.join()
    assert begun.is_set()
    until(lambda: bench.heard["question-0"][-1].get("code") == "training_first")


def test_a_model_that_does_not_end_is_ended_by_the_stage_and_no_other_process_is(bench: Bench) -> None:
    data_dir = bench.settings.data_dir
    pid = bench.ask(bench.base("base"), "wait")[0]["prompt_tokens"]
    with (data_dir / turns.FILE).open("a") as notes:
        notes.write(f"{os.getpid()}:1\n")  # its number was given to another process since
    os.kill(pid, signal.SIGSTOP)
    with turns.training(data_dir, 0):
        until(lambda: bench.heard["question-0"][-1].get("code") == "model_failed")
