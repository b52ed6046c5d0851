"""What the page on scaling has of several GPUs is what the arithmetic says."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.paper import BATCHES, CAPACITY, MODELS, step
from tests.pages import ROOT

PAGE = (ROOT / "allo_engine" / "scaling.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| (\d+ B \|.*) \|$", PAGE, re.MULTILINE)]
SHORT = next(tokens for name, tokens in BATCHES.items() if "100 tokens" in name)


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_a_row_of_the_page_is_what_comes_out(row: list[str]) -> None:
    model, gpus, how, seconds, sent, held, saturates = row
    masked, sharded = how.startswith("masked"), "shared out" in how or "ZeRO 3" in how
    found = step(MODELS[model], {"8": 8, "4 × 8": 32}[gpus], SHORT, masked, sharded)
    assert float(held.split(" GB")[0]) == pytest.approx(found.held / 1e9, abs=0.6)
    assert ("does not fit" in held) == (found.held > CAPACITY)
    if "does not fit" not in held:
        assert seconds == f"{1000 * found.seconds:,.0f} ms"
        nvlink, infiniband = map(float, sent.removesuffix(" GB").split(" / "))
        assert nvlink == pytest.approx(found.nvlink_bytes / 1e9, rel=0.05)
        assert infiniband == pytest.approx(found.infiniband_bytes / 1e9, abs=0.6)
        assert saturates == found.saturates


def test_the_page_has_both_models_on_both_machines() -> None:
    assert {(row[0], row[1]) for row in ROWS} == {(model, gpus) for model in MODELS for gpus in ("8", "4 × 8")}
