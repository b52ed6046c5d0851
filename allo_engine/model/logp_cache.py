"""Per-token log-probabilities of responses, kept by (weights, ids, dtype).

The reference of a warm-up has scored what token rewards and forgetting need again, and sampling has scored it before:
whoever computes a log-probability leaves it in a file that the stages on a machine share.
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.config import Precision
from allo_engine.model.loading import dtype_of
from allo_engine.model.logps import PerToken, computing, score
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, Ids


class LogpCache:
    """Log-probabilities under one model's weights, in a SQLite file that stages share. It may be deleted at any time.

    `weights` names the weights, as `folder.fingerprint` does.
    """

    LARGEST = 1 << 30
    """Bytes of the file beyond which the older half is forgotten."""

    def __init__(self, folder: Path, weights: str, precision: Precision) -> None:
        self._path, self.precision = folder / "logps.db", precision
        self._name = f"{weights}/{dtype_of(precision)}/".encode()

    def read(self, groups: Iterable[Group]) -> PerToken:
        """What is known of the groups' responses."""
        if not self._path.exists():
            return {}
        found: PerToken = {}
        try:
            with closing(self._connect()) as connection:
                for group in groups:
                    for index in group.responses:
                        row = connection.execute("SELECT logps FROM logps WHERE key = ?", [self._key(group, index)])
                        if kept := row.fetchone():
                            found[group.key, index] = torch.from_numpy(np.frombuffer(kept[0], np.float32).copy())
        except sqlite3.DatabaseError:  # a damaged cache is an empty one
            self._path.unlink(missing_ok=True)
            return {}
        return found

    def write(self, groups: Iterable[Group], logps: Mapping[tuple[int, int], Tensor]) -> None:
        """Keep all of it or, where the process dies, nothing: a resumed run must not mix two runs' roundings."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            (self._key(group, index), logps[group.key, index].numpy().astype(np.float32).tobytes())
            for group in groups
            for index in group.responses
            if (group.key, index) in logps
        ]
        with closing(self._connect()) as connection, connection:
            if self._path.stat().st_size > self.LARGEST:
                connection.execute("DELETE FROM logps WHERE rowid <= (SELECT avg(rowid) FROM logps)")
            connection.executemany("INSERT OR IGNORE INTO logps VALUES (?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60)
        connection.execute("CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, logps BLOB NOT NULL)")
        return connection

    def _key(self, group: Group, index: int) -> bytes:
        response: Ids = group.responses[index]
        lengths = [len(group.prompt), len(response) - len(group.scored(index))]
        return hashlib.sha256(self._name + array("q", [*lengths, *group.prompt, *response]).tobytes()).digest()


def known_or_scored(
    load: Callable[[], PreTrainedModel],
    groups: Sequence[Group],
    cache: LogpCache,
    rows: RowBudget,
    tick: Callable[[int, int], None],
) -> PerToken:
    """logπ of every response under a model: what the cache knows, and a forward pass for the rest, if there is any.

    `tick` is told of the tokens done, and of all that have to be done.
    """
    known = cache.read(groups)
    missing = [left for group in groups if (left := _unknown(group, known))]
    if not missing:
        return known
    total = sum(group.tokens() for group in missing)

    def attempt(budget: int) -> PerToken:
        done = 0

        def told(tokens: int) -> None:
            nonlocal done
            done += tokens
            tick(done, total)

        return score(model, missing, budget, told)

    model = load()

    with computing(model, cache.precision):
        found = rows.fit(attempt, missing)
    cache.write(missing, found)
    return known | found


def _unknown(group: Group, known: PerToken) -> Group | None:
    """The group with the responses that are not known, one by one."""
    items = [(index,) for index in group.responses if (group.key, index) not in known]
    return group.only(items) if items else None
