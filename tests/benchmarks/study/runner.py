"""The study's points as jobs of a service. What is done is what the service's database says is done.

A job's metadata say which point it is, and by what settings: another study, other settings or another version of the
engine are other points. So a study that was cut off goes on where it was, and a point is never paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from allo_engine.source import code_version
from service.client import Client
from tests.benchmarks.study.arms import ARMS, Scale, method
from tests.benchmarks.study.task import Problem, StudyError, write

Json = dict[str, Any]

AHEAD = 8
"""Jobs that are submitted and not done: the worker never waits for the next, and few are left where the study stops."""


class Point(NamedTuple):
    """One job: an arm at a rate, from a seed, measured on a split."""

    arm: str
    rate: float
    seed: int
    split: str

    def __str__(self) -> str:
        rate = f" at {self.rate:g}" if self.rate else ""
        return f"{self.arm}{rate}, seed {self.seed}, {self.split}"


@dataclass(frozen=True)
class Outcome:
    """What a point's job made: which problems its model answers rightly, its answers word for word to validation
    problems, for a gate, the model's name, and the most that each of the job's stages held, in bytes. Of multiple
    choice also in which problems the right option is the likeliest, and the mean log-probability of the right one among
    a problem's options, in nats."""

    cases: list[bool]
    answers: list[str]
    model: str
    peaks: dict[str, float]
    options: list[bool] = field(default_factory=list)
    option_logp: float | None = None

    @property
    def accuracy(self) -> float:
        return sum(self.cases) / len(self.cases)

    @property
    def choosing(self) -> list[bool]:
        """Of validation problems, the half that rates are chosen by."""
        return self.cases[: len(self.cases) // 2]

    @property
    def gating(self) -> list[bool]:
        """The other half, which chooses nothing: what it says of a chosen rate is not the luck of the best of many."""
        return self.cases[len(self.cases) // 2 :]


@dataclass
class Runner:
    """Has points computed. `say` is told what happens."""

    client: Client
    scale: Scale
    folder: Path
    say: Callable[[str], None] = print
    wait: float = 0.5
    _files: dict[str, str] = field(default_factory=dict)
    _splits: dict[str, tuple[str, list[Problem]]] = field(default_factory=dict)
    _outcomes: dict[Point, Outcome] = field(default_factory=dict)

    def run(self, points: Sequence[Point]) -> dict[Point, Outcome]:
        """Each point's outcome: those that are there, and the others once they are computed. Raises StudyError for a
        job that fails."""
        jobs = self.jobs()
        missing = [point for point in points if point not in self._outcomes]
        todo = iter([point for point in missing if point not in jobs])
        active = {point: jobs[point] for point in missing if point in jobs}
        total, began = len(missing), time.monotonic()
        while True:
            for point in list(active):
                self._look(point, active)
            active |= {point: self.client.submit(self._body(point)) for point in islice(todo, AHEAD - len(active))}
            if not active:
                break
            time.sleep(self.wait)
        if total:
            self.say(f"{total} points took {time.monotonic() - began:.0f} s.")
        return {point: self._outcomes[point] for point in points}

    def jobs(self) -> dict[Point, Json]:
        """The study's jobs that are done or under way, by point."""
        found: dict[Point, Json] = {}
        for job in self._pages():
            given = job["metadata"]
            point = Point(given["arm"], float(given["rate"]), int(given["seed"]), given["split"])
            known = point.arm in ARMS and given["settings"] == self._settings(point)
            if known and job["status"] not in ("failed", "cancelled"):
                found.setdefault(point, job)
        return found

    def outcomes(self) -> dict[Point, Outcome]:
        """Everything that is done."""
        for point, job in self.jobs().items():
            if job["status"] == "succeeded" and point not in self._outcomes:
                self._outcomes[point] = self._outcome(point, job)
        return dict(self._outcomes)

    def estimate(self, point: Point) -> Json:
        """What the point's job would take, by the service's own estimate."""
        return self.client.post("/v1/fine_tuning/jobs/estimate", self._body(point))

    def _look(self, point: Point, active: dict[Point, Json]) -> None:
        job = self.client.job(active[point]["id"])
        if job["status"] == "succeeded":
            del active[point]
            self._outcomes[point] = self._outcome(point, job)
            self.say(f"{point}: {self._outcomes[point].accuracy:.1%} right")
        elif job["status"] in ("failed", "cancelled"):
            reason = (job["error"] or {}).get("message", "")
            raise StudyError(f"{point}: job {job['id']} {job['status']}. {reason} Start the study again to retry it.")

    def _pages(self) -> Iterator[Json]:
        """The study's jobs, newest first."""
        after: dict[str, str] = {}
        while True:
            query = {"limit": 100, "metadata[study]": self.scale.name, **after}
            page = self.client.get("/v1/fine_tuning/jobs", **query)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["data"][-1]["id"]}

    def _outcome(self, point: Point, job: Json) -> Outcome:
        rows = json.loads(self.client.file_content(job["result_files"][0]))["models"]
        (row,) = [row for row in rows if row["model"] == ARMS[point.arm].row]
        peaks = {stage["name"]: stage["metrics"].get("peak_memory_bytes", 0.0) for stage in job["stages"]}
        options = [case for case in row.get("option_cases", ()) if case is not None]
        answers = self._answers(job["id"], row["model"]) if point.split == "validation" else []
        return Outcome(row["cases"], answers, job["fine_tuned_model"], peaks, options, row.get("option_logp"))

    def _answers(self, job: str, model: str) -> list[str]:
        """What one of the job's models answered to every problem: it stands beside the report."""
        files = self.client.get(f"/v1/fine_tuning/jobs/{job}/artifacts")["data"]
        (texts,) = [file for file in files if file["path"] == "texts.jsonl"]
        folder = self.folder / "answers" / job
        self.client.download(texts, folder, lambda _: None)
        with (folder / texts["path"]).open(encoding="utf-8") as lines:
            return [json.loads(line)["models"][model]["answer"] for line in lines]

    def _body(self, point: Point) -> Json:
        supervised = ARMS[point.arm].method == "supervised"
        given = {"arm": point.arm, "rate": repr(point.rate), "seed": str(point.seed), "split": point.split}
        return {
            "model": self.scale.model if supervised else self._started_from(point.seed),
            "training_file": self._file("sft" if supervised else "preference"),
            "validation_file": self._file(point.split),
            "seed": point.seed,
            "method": method(self.scale, point.arm, point.rate),
            "metadata": {"study": self.scale.name, **given, "settings": self._settings(point)},
        }

    def _started_from(self, seed: int) -> str:
        """The SFT model of the seed, which all its arms start from."""
        for point, outcome in self._outcomes.items():
            if (point.arm, point.seed) == ("SFT", seed):
                return outcome.model
        raise StudyError(f"SFT of seed {seed} is to be run first.")

    def _settings(self, point: Point) -> str:
        """A name for all that the point's outcome follows from."""
        scale = self.scale
        files = sorted(name for name, _ in self._named().values())
        given = [code_version(), scale.model, files, dict(scale.sft), method(scale, point.arm, point.rate)]
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]

    def _file(self, split: str) -> str:
        """The id of a split's file, uploaded where it is not there."""
        if split not in self._files:
            name, problems = self._named()[split]
            there = self.client.get("/v1/files", purpose="fine-tune", limit=1000)["data"]
            known = [file["id"] for file in there if file["filename"] == name and file["status"] != "error"]
            self._files[split] = known[0] if known else self.client.upload(write(self.folder / name, problems))["id"]
        return self._files[split]

    def _named(self) -> dict[str, tuple[str, list[Problem]]]:
        """Each split's problems, and the name of its file, which is by its content."""
        if not self._splits:
            for split, problems in self.scale.task.splits(self.scale.sizes).items():
                digest = hashlib.sha256(json.dumps(problems).encode()).hexdigest()[:12]
                self._splits[split] = f"{split}-{digest}.jsonl", problems
        return self._splits


def at_rates(scale: Scale, arms: Sequence[str], seed: int, split: str) -> list[Point]:
    """Every arm at each of its rates."""
    return [Point(arm, rate, seed, split) for arm in arms for rate in scale.rates(arm)]


def chosen(outcomes: Mapping[Point, Outcome]) -> dict[str, float]:
    """Each arm's best rate on half of seed 0's validation problems, which no comparison uses; of equals the lowest."""
    best: dict[str, tuple[int, float]] = {}
    for point, outcome in outcomes.items():
        if (point.seed, point.split) == (0, "validation"):
            best[point.arm] = max(best.get(point.arm, (-1, 0.0)), (sum(outcome.choosing), -point.rate))
    return {arm: -rate for arm, (_, rate) in best.items()}
