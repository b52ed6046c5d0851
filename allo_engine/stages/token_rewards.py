"""Token rewards: P_rm(t), the probability that the rewriter, shown problem, reference and prediction, writes the
prediction's own token t next. Low P marks the unaligned tokens.

With source `log_ratio` no rewriter is asked: P = σ(logπ_warmup − logπ_start), which is below one half exactly where the
warm-up made the token less likely. The reference log-probabilities that forgetting needs come from the same pass.

Beside the scores stand a few of them for people to read, token by token (`examples.jsonl`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from allo_engine.checkpoints.folder import fingerprint
from allo_engine.configs.token_rewards import TokenRewardsConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, fitting_groups, negatives, within_context
from allo_engine.data.records import NegativeGroup, ScoredGroup, write_lines
from allo_engine.data.rewriting import Rewriting
from allo_engine.data.shown import examples
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.logps import PerToken
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group, singles
from allo_engine.report import Report, Stopped


def run(config: TokenRewardsConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    encoder = Encoder.of(inputs["model"], config)
    given = negatives(inputs["negatives"], encoder)
    plain = [singles(key, group.prompt_ids, group.responses) for key, group in enumerate(given)]
    plain = fitting_groups(plain, config, inputs["model"], report)
    read = [inputs[name] for name in ("model", "reward_model", "updated") if name in inputs]
    rows = RowBudget(min(fitting_tokens(config, folder, "forward") for folder in read), work, report)
    scorer = _Scorer(config, inputs.get("cache", work), work, rows, report)
    if config.source == "reward_model":
        rewriting = Rewriting(encoder)
        rewritten = [rewriting.scoring(group.key, given[group.key]).only(group.items) for group in plain]
        rewritten = within_context(rewritten, inputs["reward_model"], report)
        items = {group.key: group.items for group in rewritten}
        plain = [group.only(items[group.key]) for group in plain if group.key in items]
        scorer.left = sum(group.tokens() for group in rewritten)
        reference = scorer(inputs["model"], plain)
        probabilities = {key: logps.exp() for key, logps in scorer(inputs["reward_model"], rewritten).items()}
    else:
        scorer.left = sum(group.tokens() for group in plain)
        reference = scorer(inputs["model"], plain)
        updated = scorer(inputs["updated"], plain)
        probabilities = {key: torch.sigmoid(logps - reference[key]) for key, logps in updated.items()}
    scored = [_scored(given[group.key], group, probabilities, reference) for group in plain]
    write_lines(outputs / "scores" / "scores.jsonl", scored)
    named = [(given[group.key].problem, found) for group, found in zip(plain, scored, strict=True)]
    write_lines(outputs / "scores" / "examples.jsonl", examples(named, encoder))
    tokens = torch.cat([probabilities[group.key, index][:-1] for group in plain for index in group.responses])
    return {
        "responses": sum(len(group.responses) for group in plain),
        "tokens": len(tokens),
        "unaligned_share": float((tokens < 0.5).float().mean()),
        "mean_probability": float(tokens.mean()),
    }


class _Scorer:
    """Scores with one model after the other; `left` is the work of the models behind the one that is at work."""

    def __init__(self, config: TokenRewardsConfig, shared: Path, work: Path, rows: RowBudget, report: Report) -> None:
        self._config, self._shared, self._work, self._rows, self._report = config, shared, work, rows, report
        self._before, self._done, self.left = 0, 0, 0

    def __call__(self, folder: Path, groups: list[Group]) -> PerToken:
        precision = self._config.precision
        cache = LogpCache(self._shared, self._work, fingerprint(folder), precision)
        found = known_or_scored(lambda: load_model(folder, dtype_of(precision)), groups, cache, self._rows, self._tick)
        self._before, self.left = self._done, 0
        return found

    def _tick(self, done: int, total: int) -> None:
        self._done = self._before + done
        self._report.progress(self._done, self._before + total + self.left)
        if self._report.stop_requested:
            raise Stopped


def _scored(given: NegativeGroup, group: Group, probabilities: PerToken, reference: PerToken) -> ScoredGroup:
    indices = list(group.responses)
    return ScoredGroup(
        given.prompt_ids,
        [given.responses[index] for index in indices],
        [probabilities[group.key, index].tolist() for index in indices],
        [reference[group.key, index].tolist() for index in indices],
    )
