"""The study from its first job to its report: what is run, in which order, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.study.arms import ARMS
from tests.benchmarks.study.gates import ASKED_SEEDS, MASKED, Gate, arm_gates, leader, sft_gate
from tests.benchmarks.study.report import write_report
from tests.benchmarks.study.runner import Point, Runner, at_rates, chosen
from tests.benchmarks.study.task import StudyError

SFT = ("SFT",)
OTHERS = tuple(name for name in ARMS if name not in SFT)
"""All arms but the one that they start from."""


def run(runner: Runner, reports: Path, arms: Sequence[str] = OTHERS, *, anyway: bool = False) -> None:
    """Go through the whole study, or on with it. A report is written after every seed, and wherever it stops. Raises
    StudyError where a gate fails, unless it is to go on `anyway`."""
    report = partial(_report, runner, reports)
    try:
        _go(runner, arms, report, anyway)
    finally:
        report()


def _go(runner: Runner, arms: Sequence[str], report: Callable[[], None], anyway: bool) -> None:
    found = runner.run(at_rates(runner.scale, SFT, 0, "validation"))
    _pass(runner, [sft_gate(found)], anyway)
    found |= runner.run(at_rates(runner.scale, arms, 0, "validation"))
    best = chosen(found)
    runner.say("Chosen: " + ", ".join(f"{arm} {rate:g}" for arm, rate in best.items() if rate))
    for seed in range(1, min(ASKED_SEEDS, runner.scale.seeds)):
        runner.run(at_rates(runner.scale, SFT, seed, "validation"))
        found |= runner.run([Point(arm, best[arm], seed, "validation") for arm in ("A", leader(found, MASKED))])
    _pass(runner, arm_gates(found), anyway)
    for seed in range(runner.scale.seeds):
        runner.run(at_rates(runner.scale, SFT, seed, "test"))
        runner.run([Point(arm, best[arm], seed, "test") for arm in arms])
        report()
    for seed in range(1, runner.scale.seeds):
        runner.run(at_rates(runner.scale, SFT, seed, "validation"))
        runner.run(at_rates(runner.scale, arms, seed, "validation"))
        report()


def _report(runner: Runner, reports: Path) -> None:
    outcomes = runner.outcomes()
    if Point("SFT", 0.0, 0, "validation") in outcomes:
        write_report(outcomes, runner.scale, reports)


def _pass(runner: Runner, gates: Sequence[Gate], anyway: bool) -> None:
    for gate in gates:
        runner.say(f"Gate {gate}")
    if not anyway and not all(gate.passed for gate in gates):
        raise StudyError("A gate failed: nothing is compared. Change what it names, and start again.")
