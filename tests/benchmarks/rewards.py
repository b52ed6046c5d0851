"""Token rewards: the rewriter's and the reference's log-probabilities of wrong responses, against one at a time."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import torch

from allo_engine.config import PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.rewriting import Rewriting
from allo_engine.model.loading import load_model
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.rows import LONGEST_ROW_SCORED, RowBudget
from allo_engine.model.sequences import Group, singles
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import Report
from tests.benchmarks import material
from tests.benchmarks.case import COMPUTE, Case, torch_version

PROBLEMS = 6


def sequences() -> tuple[list[Group], list[Group]]:
    """Wrong responses behind their prompt, as the reference reads them, and as the rewriter does."""
    rewriting = Rewriting(Encoder(load_tokenizer(material.model()), PromptConfig(template=material.TEMPLATE)))
    given = material.negative_groups(PROBLEMS)
    plain = [singles(key, group.prompt_ids, group.responses) for key, group in enumerate(given)]
    return plain, [rewriting.scoring(key, group) for key, group in enumerate(given)]


def tokens(groups: list[Group]) -> int:
    return sum(len(ids) for group in groups for ids in group.responses.values())


def ours(cached: bool) -> float:
    """Responses' tokens a second, for both models; `cached`: the reference's are left from sampling or the warm-up."""
    plain, rewritten = sequences()
    model = load_model(material.model())
    with tempfile.TemporaryDirectory() as work:
        rows = RowBudget(LONGEST_ROW_SCORED["cpu"], Path(work), Report(io.StringIO()))
        start, rewriter = (LogpCache(Path(work), Path(work), name, "auto") for name in ("start", "rewriter"))
        if cached:
            known_or_scored(lambda: model, plain, start, rows, lambda *_: None)
        began = time.perf_counter()
        known_or_scored(lambda: model, plain, start, rows, lambda *_: None)
        known_or_scored(lambda: model, rewritten, rewriter, rows, lambda *_: None)
        return tokens(plain) / (time.perf_counter() - began)


@torch.no_grad()
def one_by_one() -> float:
    """As published: each response in a forward pass of its own, with the logits of every position."""
    plain, rewritten = sequences()
    model = load_model(material.model())
    began = time.perf_counter()
    for group in [*plain, *rewritten]:
        for index, ids in group.responses.items():
            logits = model(torch.tensor([[*group.prompt, *ids]])).logits[0]
            scored = torch.tensor(group.scored(index))
            logits.float().log_softmax(-1)[-len(scored) - 1 : -1].gather(1, scored[:, None])
    return tokens(plain) / (time.perf_counter() - began)


CASES = tuple(
    Case(
        f"token_rewards, tokens/s, 5 negatives a problem, {how}",
        lambda cached=cached: ours(cached),  # type: ignore[misc]
        one_by_one,
        torch_version("one response at a time"),
        goal=3.0,
        higher_is_better=True,
        limit=COMPUTE,
    )
    for cached, how in ((True, "the reference kept since sampling"), (False, "the reference scored anew"))
)
