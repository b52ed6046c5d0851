"""Token ids with offsets, and rows that pack problems with a shared prompt.

A row is one sequence [1, L] that holds many problems. Each problem's prompt stands once, behind it every response, each
attending to the prompt and to itself alone, at the positions it would have if it stood there by itself:

    prompt₁ response₁₁ response₁₂ … prompt₂ response₂₁ …

So nothing is padded, a prompt is computed once for all its responses, and values and gradients are those of separate
sequences. The last token of a response is predicted but never read, so it is not in the row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

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
        return len(self.prompt) + sum(len(ids) - 1 for ids in self.responses.values())


def singles(key: int, prompt: Ids, responses: Sequence[Ids], context: Sequence[int] = ()) -> Group:
    """A group whose items are its responses, one by one."""
    numbers = range(len(responses))
    return Group(key, prompt, dict(enumerate(responses)), [(index,) for index in numbers], dict(enumerate(context)))


@dataclass(frozen=True)
class Row:
    """Packed groups, as what a model takes and what its logits mean.

    ids, positions [1, L]; mask [1, 1, L, L] bool, True = attends; sources, targets [R]: the logits at place sources[r]
    predict token targets[r]. `parts` gives, in order, (place of the group in the row, response, length): they cut R.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    sources: Tensor
    targets: Tensor
    parts: tuple[tuple[int, int, int], ...] = field(repr=False)

    def split(self, values_R: Tensor) -> dict[tuple[int, int], Tensor]:
        """Values of the scored tokens, by (place of the group in the row, response)."""
        pieces = values_R.split([length for _, _, length in self.parts])
        return {(group, index): piece for (group, index, _), piece in zip(self.parts, pieces, strict=True)}


def build_row(groups: Sequence[Group], device: torch.device | str = "cpu") -> Row:
    """Pack groups into one row, in the given order."""
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []  # which group a token belongs to
    segment: list[int] = []  # 0 for a prompt, else the response's number in its group
    sources: list[int] = []
    targets: list[int] = []
    parts: list[tuple[int, int, int]] = []
    for place, group in enumerate(groups):
        prompt_end = len(ids) + len(group.prompt) - 1
        _extend((ids, positions, owner, segment), group.prompt, 0, place, 0)
        for number, (index, response) in enumerate(group.responses.items()):
            first = len(ids)
            _extend((ids, positions, owner, segment), response[:-1], len(group.prompt), place, number + 1)
            scored = group.scored(index)
            read_by = [prompt_end, *range(first, first + len(response) - 1)]
            sources += read_by[len(response) - len(scored) :]
            targets += scored
            parts.append((place, index, len(scored)))
    columns = (owner, segment, ids, positions, sources, targets)
    owner_L, segment_L, ids_L, positions_L, sources_R, targets_R = (
        torch.tensor(column, device=device) for column in columns
    )
    mask = _mask(owner_L, segment_L)
    return Row(ids_L[None], positions_L[None], mask, sources_R, targets_R, tuple(parts))


def _extend(columns: tuple[list[int], ...], tokens: Ids, offset: int, owner: int, segment: int) -> None:
    ids, positions, owners, segments = columns
    ids += tokens
    positions += range(offset, offset + len(tokens))
    owners += [owner] * len(tokens)
    segments += [segment] * len(tokens)


def _mask(owner_L: Tensor, segment_L: Tensor) -> Tensor:
    """True where query (row) may attend to key (column): earlier, same group, and prompt or same response."""
    length = len(owner_L)
    causal = torch.ones(length, length, dtype=torch.bool, device=owner_L.device).tril()
    same_group = owner_L[:, None] == owner_L[None, :]
    visible = (segment_L[None, :] == 0) | (segment_L[:, None] == segment_L[None, :])
    return (causal & same_group & visible)[None, None]


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
    """Groups into rows of at most `budget` tokens, more only for a single item that is longer: first fit decreasing."""
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
    return rows


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
