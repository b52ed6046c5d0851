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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Ids = Sequence[int]


@dataclass(frozen=True)
class Group:
    """A prompt, its responses by number, and the items that a loss is made of.

    An item names the responses it needs: (i,) for a single response, (chosen, rejected) for a pair. The first
    `context[i]` tokens of response i are read but not scored. `key` names the group in its stage's data, so that
    (key, i) names a response however its group is cut.
    """

    key: int
    prompt: Ids
    responses: Mapping[int, Ids]
    items: Sequence[tuple[int, ...]]
    context: Mapping[int, int] = field(default_factory=dict)

    def scored(self, index: int) -> Ids:
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

    @cached_property
    def _tokens(self) -> int:
        return len(_Forest([(self.prompt, ids) for ids in self.responses.values()]).ids)


def singles(key: int, prompt: Ids, responses: Sequence[Ids], context: Sequence[int] = ()) -> Group:
    """A group whose items are its responses, one by one."""
    numbers = range(len(responses))
    return Group(key, prompt, dict(enumerate(responses)), [(index,) for index in numbers], dict(enumerate(context)))


@dataclass(frozen=True)
class Row:
    """Packed groups, as what a model takes and what its logits mean.

    ids, positions [1, L]; ends [L]; sources, targets [R]: the logits at place sources[r] predict token targets[r], each
    such prediction once. A response's scored tokens are `parts`' (place of the group in the row, response, length), in
    this order: places in R, one after another in `members`.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    sources: Tensor
    targets: Tensor
    members: Tensor
    parts: tuple[tuple[int, int, int], ...] = field(repr=False)

    def mask(self) -> Tensor:
        """[1, 1, L, L] bool: True where query (row) attends to key (column)."""
        place = torch.arange(len(self.ends), device=self.ends.device)
        return ((place[None, :] <= place[:, None]) & (place[:, None] < self.ends[None, :]))[None, None]

    def block_mask(self) -> BlockMask:
        """The same for FlexAttention, which skips the blocks where nothing attends."""
        length, ends = len(self.ends), self.ends

        def attends(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[key])

        return create_block_mask(attends, None, None, length, length, device=str(ends.device))

    def split(self, values_R: Tensor) -> dict[tuple[int, int], Tensor]:
        """Values of the scored tokens, by (place of the group in the row, response)."""
        pieces = values_R[self.members].split([length for _, _, length in self.parts])
        return {(group, index): piece for (group, index, _), piece in zip(self.parts, pieces, strict=True)}


class _Forest:
    """Sequences (prompt, response) as a forest in depth-first order: sorted, equal beginnings stand side by side."""

    def __init__(self, sequences: Sequence[tuple[Ids, Ids]]) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.ends: list[int] = []
        self.paths: list[list[int]] = [[] for _ in sequences]
        """The places of each sequence's tokens."""
        path: list[int] = []
        read = [(*prompt, *response[:-1]) for prompt, response in sequences]
        for number in sorted(range(len(read)), key=read.__getitem__):
            shared = sum(1 for _ in takewhile(lambda pair: self.ids[pair[0]] == pair[1], zip(path, read[number])))  # noqa: B905
            path = self._close(path, shared) + self._append(read[number][shared:], shared)
            self.paths[number] = path
        self._close(path, 0)

    def _close(self, path: list[int], shared: int) -> list[int]:
        for place in path[shared:]:
            self.ends[place] = len(self.ids)
        return path[:shared]

    def _append(self, tokens: Ids, depth: int) -> list[int]:
        first = len(self.ids)
        self.ids += tokens
        self.positions += range(depth, depth + len(tokens))
        self.ends += [0] * len(tokens)
        return list(range(first, len(self.ids)))


def build_row(groups: Sequence[Group], device: torch.device | str = "cpu") -> Row:
    """Pack groups into one row."""
    members = [(place, index) for place, group in enumerate(groups) for index in group.responses]
    forest = _Forest([(groups[place].prompt, groups[place].responses[index]) for place, index in members])
    predicted: dict[tuple[int, int], int] = {}  # (source, target) → its place in R
    places: list[int] = []
    parts: list[tuple[int, int, int]] = []
    for (place, index), path in zip(members, forest.paths, strict=True):
        scored = groups[place].scored(index)
        pairs = zip(path[-len(scored) :], scored, strict=True)
        places += [predicted.setdefault(pair, len(predicted)) for pair in pairs]
        parts.append((place, index, len(scored)))
    sources, targets = zip(*predicted, strict=True)
    columns = (forest.ids, forest.positions, forest.ends, sources, targets, places)
    ids_L, positions_L, ends_L, sources_R, targets_R, members_M = (
        torch.tensor(column, device=device) for column in columns
    )
    return Row(ids_L[None], positions_L[None], ends_L, sources_R, targets_R, members_M, tuple(parts))


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
    """Groups into rows of at most `budget` tokens, more only for a single item that is longer: first fit decreasing.

    The longest row comes first: what it took of memory, the others find free.
    """
    pieces = [piece for group in groups for piece in split_group(group, budget)]
    rows: list[list[Group]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=Group.tokens, reverse=True):
        size = piece.tokens()
        place = next((index for index, left in enumerate(room) if left >= size), None)
        if place is None:
            rows.append([piece])
            room.append(budget - size)
        else:
            rows[place].append(piece)
            room[place] -= size
    return [rows[place] for place in sorted(range(len(rows)), key=room.__getitem__)]


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
