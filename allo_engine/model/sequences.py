"""Token ids with offsets, and rows that pack problems so that no token is computed twice.

A sequence is a problem's prompt and one of its responses. A row [1, L] holds many sequences as a forest: where two
begin with the same tokens these stand once, be it a template's header, a prompt with all its responses, or the first
words of two responses. A token attends to its ancestors and itself, at the position that it has in its own sequence:

    prompt₁ {response₁₁ response₁₂ …} prompt₂ {response₂₁ …} …

So nothing is padded, and values and gradients are those of separate sequences. Tokens stand in depth-first order: token
k is an ancestor of token q, or q itself, exactly where k ≤ q < ends[k], `ends[k]` being where the tree below k ends.
The last token of a response is predicted but never read, so it is not in the row.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allo_engine.model.ahead import to_device

Tokens = Sequence[int]
"""Token ids."""

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """A prompt, its responses by number, and the items that a loss is made of.

    An item names the responses it needs: (i,) for a single response, (chosen, rejected) for a pair. The first
    `context[i]` tokens of response i are read but not scored. `key` names the group in its stage's data, so that
    (key, i) names a response however its group is cut.
    """

    key: int
    prompt: Tokens
    responses: Mapping[int, Tokens]
    items: Sequence[tuple[int, ...]]
    context: Mapping[int, int] = field(default_factory=dict)

    def scored(self, index: int) -> Tokens:
        """The tokens of a response that are predicted."""
        return self.responses[index][self.context.get(index, 0) :]

    def only(self, items: Sequence[tuple[int, ...]]) -> Group:
        """The same group with some of its items, and the responses that these need."""
        needed = {index for item in items for index in item}
        responses = {index: ids for index, ids in self.responses.items() if index in needed}
        return replace(self, items=items, responses=responses)

    def tokens(self) -> int:
        """Tokens that a row needs for this group."""
        return self._tokens

    def prompt_and(self, item: tuple[int, ...]) -> int:
        """Tokens that a row needs for one item at most: its responses may share their first words, too."""
        return len(self.prompt) + sum(len(self.responses[index]) for index in item)

    @cached_property
    def _tokens(self) -> int:
        return _Forest([(self.prompt, ids) for ids in self.responses.values()]).size


def singles(key: int, prompt: Tokens, responses: Sequence[Tokens], context: Sequence[int] = ()) -> Group:
    """A group whose items are its responses, one by one."""
    numbers = range(len(responses))
    return Group(key, prompt, dict(enumerate(responses)), [(index,) for index in numbers], dict(enumerate(context)))


@dataclass(frozen=True)
class Row:
    """Packed groups, as what a model takes and what its logits mean.

    ids, positions [1, L]; ends [L]; sources, targets [R]: the logits at place sources[r] predict token targets[r], each
    such prediction once. A response's scored tokens are `parts`' (place of the group in the row, response, length), in
    this order: places in R, one after another in `members`. `host_ends` and `host_sources` are on the host, where to
    read them is not to wait for the device.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    sources: Tensor
    targets: Tensor
    members: Tensor
    host_ends: Places = field(repr=False)
    host_sources: Places = field(repr=False)
    parts: tuple[tuple[int, int, int], ...] = field(repr=False)

    def arguments(self) -> dict[str, Any]:
        """What a model takes for the whole row, inside `attending` (see attention.py).

        The mask of ones says that nothing is padding; without it transformers would guess sequences from positions.
        """
        padding = torch.ones_like(self.ids)
        return {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": padding, "use_cache": False}

    def sequences(self) -> Iterator[list[int]]:
        """The row's separate sequences, as places from first to last; those that others begin with are left out."""
        ends: list[int] = self.host_ends.tolist()
        path: list[int] = []
        for place, end in enumerate(ends):
            while path and ends[path[-1]] <= place:
                path.pop()
            path.append(place)
            if end == place + 1:
                yield list(path)

    def split(self, values_R: Tensor) -> dict[tuple[int, int], Tensor]:
        """Values of the scored tokens, by (place of the group in the row, response)."""
        return self.cut(values_R[self.members])

    def cut(self, values_M: Tensor) -> dict[tuple[int, int], Tensor]:
        """Values that stand one scored token after another, on any device, by (place of the group, response)."""
        pieces = values_M.split([length for _, _, length in self.parts])
        return {(group, index): piece for (group, index, _), piece in zip(self.parts, pieces, strict=True)}


class _Forest:
    """Sequences (prompt, response) as a forest in depth-first order: sorted, equal beginnings stand side by side.

    So what a sequence shares with any before it, it shares with the one right before it.
    """

    def __init__(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> None:
        read = [(*prompt, *response[:-1]) for prompt, response in sequences]
        self._order = sorted(range(len(read)), key=read.__getitem__)
        self._read = [np.frombuffer(array("q", read[number]), np.int64) for number in self._order]
        self._shared = [0, *(_shared(before, tokens) for before, tokens in pairwise(self._read))]
        self.size = sum(map(len, self._read)) - sum(self._shared)

    def ids(self) -> Places:
        """The tokens, [L]."""
        return np.concatenate([tokens[shared:] for tokens, shared in zip(self._read, self._shared, strict=True)])

    def positions(self) -> Places:
        """How deep each token stands, [L]: its place in its own sequence."""
        depths = zip(self._read, self._shared, strict=True)
        return np.concatenate([np.arange(shared, len(tokens)) for tokens, shared in depths])

    def ends_and_paths(self) -> tuple[Places, list[Places]]:
        """Where the tree below each token ends, [L]; and the places of each sequence's tokens, as they were given."""
        ends = np.full(self.size, self.size)
        paths: list[Places] = [np.empty(0, np.int64)] * len(self._read)
        path, start = np.empty(0, np.int64), 0
        for number, tokens, shared in zip(self._order, self._read, self._shared, strict=True):
            ends[path[shared:]] = start
            stop = start + len(tokens) - shared
            paths[number] = path = np.concatenate([path[:shared], np.arange(start, stop)])
            start = stop
        return ends, paths


def _shared(one: Places, other: Places) -> int:
    """With how many equal tokens two sequences begin."""
    most = min(len(one), len(other))
    differs = one[:most] != other[:most]
    return int(differs.argmax()) if differs.any() else most


def build_row(groups: Sequence[Group], device: torch.device | str = "cpu") -> Row:
    """Pack groups into one row. It goes to the device in one piece."""
    members = [(place, index) for place, group in enumerate(groups) for index in group.responses]
    forest = _Forest([(groups[place].prompt, groups[place].responses[index]) for place, index in members])
    ends, paths = forest.ends_and_paths()
    scored = [groups[place].scored(index) for place, index in members]
    sources = np.concatenate([path[len(path) - len(ids) :] for path, ids in zip(paths, scored, strict=True)])
    targets = np.frombuffer(array("q", chain.from_iterable(scored)), np.int64)
    predicted, among = np.unique(sources << 32 | targets, return_inverse=True)  # ids are far below 2³²
    sources = predicted >> 32
    columns = (forest.ids(), forest.positions(), ends, sources, predicted & 0xFFFFFFFF, among)
    packed = to_device(torch.from_numpy(np.concatenate(columns)), torch.device(device))
    ids_L, positions_L, ends_L, sources_R, targets_R, members_M = packed.split([len(column) for column in columns])
    parts = tuple((*member, len(ids)) for member, ids in zip(members, scored, strict=True))
    return Row(ids_L[None], positions_L[None], ends_L, sources_R, targets_R, members_M, ends, sources, parts)


def split_group(group: Group, budget: int) -> list[Group]:
    """Cut a group that is too long for one row into groups of whole items, repeating the prompt."""
    if group.tokens() <= budget or len(group.items) == 1:
        return [group]
    pieces: list[list[tuple[int, ...]]] = [[]]
    for item in group.items:
        if pieces[-1] and group.only([*pieces[-1], item]).tokens() > budget:
            pieces.append([])
        pieces[-1].append(item)
    return [group.only(items) for items in pieces]


def rows_of(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Groups into rows of at most `budget` tokens, more only for a single item that is longer.

    Best fit decreasing, in n log n: a group, the longest first, goes where it leaves the least room, of equal rows into
    the oldest. The longest row comes first: what it took of memory, the others find free.
    """
    pieces = [piece for group in groups for piece in split_group(group, budget)]
    rows: list[list[Group]] = []
    room: list[tuple[int, int]] = []  # (left, place of the row), sorted
    for piece in sorted(pieces, key=Group.tokens, reverse=True):
        fitting = bisect_left(room, (piece.tokens(), 0))
        if fitting == len(room):
            rows.append([])
            left, place = budget, len(rows) - 1
        else:
            left, place = room.pop(fitting)
        rows[place].append(piece)
        insort(room, (left - piece.tokens(), place))
    return [rows[place] for _, place in room]


def batches(groups: Sequence[Group], batch_size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """One epoch's batches, as places in `groups`: a pure function of (seed, epoch).

    Problems are shuffled and taken whole until a batch holds at least `batch_size` items, so that a problem's
    responses share its prompt.
    """
    order = list(range(len(groups)))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - a shuffle, not a secret
    batch: list[int] = []
    items = 0
    for place in order:
        batch.append(place)
        items += len(groups[place].items)
        if items >= batch_size:
            yield batch
            batch, items = [], 0
    if batch:
        yield batch
