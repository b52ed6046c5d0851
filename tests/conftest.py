"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.s3 import Wire

gc.disable()  # while all is imported: what is made meanwhile stays

E2E = "tests/e2e/"
ENGINE = "tests/integration/worker/with the engine"
TOGETHER = {E2E: E2E} | {f"tests/integration/worker/test_{name}.py": ENGINE for name in ("kills", "ranks", "warm")}
"""Files that share what is slow to start, a service or the engine's warm process, by how their tests' ids begin."""

LONGEST = (
    *(E2E, "tests/browser/test_by_hand.py", "tests/integration/worker/", "tests/unit/engine/test_ranks.py"),
    *("tests/unit/engine/test_shares.py", "tests/integration/engine/", "tests/integration/service/test_fuzz.py"),
    *("tests/browser/", "tests/integration/cli/", "tests/unit/engine/training/"),
)
"""What takes longest, the longest first."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of processes that collect side by side each begins elsewhere in a folder: whoever comes to a file first writes
    its asserts anew, which takes half of the time, and the others find them written."""
    report = yield
    own: dict[str, Any] = getattr(collector.config, "workerinput", {})
    if own and isinstance(collector, pytest.Directory):
        first = len(report.result) * int(own["workerid"].removeprefix("gw")) // own["workercount"]
        report.result = report.result[first:] + report.result[:first]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In one order, wherever a process began. A long file that begins last is waited for by one process alone;
    `--no-loadscope-reorder` keeps this order."""

    def place(item: pytest.Item) -> tuple[int, Path]:
        longest = (place for place, path in enumerate(LONGEST) if item.nodeid.startswith(path))
        return next(longest, len(LONGEST)), item.path

    items.sort(key=place)


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, the tests of such files stay together as those of a file do."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = (scope for begin, scope in TOGETHER.items() if nodeid.startswith(begin))
            return next(together, super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_stays() -> None:
    """No collection looks again at what was imported or is shared by now: stages ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    from tests.s3 import s3_server  # here: tests of the engine alone run where the service's packages are not

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def wire(s3_endpoint: str) -> Iterator[Wire]:
    """A wire to it, of the test's own."""
    from tests.s3 import Wire

    wire = Wire(s3_endpoint)
    yield wire
    wire.close()
