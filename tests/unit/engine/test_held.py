"""What a process holds of memory, by the kernel's count."""

from __future__ import annotations

from pathlib import Path

from allo_engine.held import own_bytes, peak_bytes
from tests.unit.engine.processes import as_ranks

SIZE = 200_000_000


def held() -> list[tuple[int, int]]:
    """(own, peak) before something large was held, while it was, and after."""
    found = [(own_bytes(), peak_bytes())]
    large = bytearray(b"x") * SIZE
    found.append((own_bytes(), peak_bytes()))
    del large
    return [*found, (own_bytes(), peak_bytes())]


def test_a_peak_stays_and_what_is_held_goes(tmp_path: Path) -> None:
    ((before, during, after),) = as_ranks(1, tmp_path, held)
    assert during[0] - before[0] > 0.9 * SIZE
    assert after[0] - before[0] < 0.1 * SIZE
    for peak in (during[1], after[1]):  # the kernel's counts lag by some pages
        assert peak > 0.99 * during[0]
        assert peak > before[1] + 0.9 * SIZE
