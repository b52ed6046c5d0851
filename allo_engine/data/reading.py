"""A stage's input folders, as the engine's own records: files that a stage wrote, or files that a user uploaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from allo_engine.bases import PromptConfig
from allo_engine.checkpoints.folder import context_length
from allo_engine.data.examples import examples_of, preference_of
from allo_engine.data.messages import content_of
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup, PairGroup, Problem, as_problem, read_lines
from allo_engine.data.shares import subject_of, within
from allo_engine.model.sequences import Group
from allo_engine.report import Report, StageError

Inputs = Mapping[str, Path]
"""The folder of each of a stage's inputs."""

UPLOADED = "data.jsonl"
"""The one file of an uploaded input."""


def problems(folder: Path, skip_share: float = 0.0) -> list[Problem]:
    """The problems of a file, but for those within a share of it."""
    found = map(as_problem, read_lines(folder / UPLOADED))
    return [problem for problem in found if not within(problem.problem, skip_share)]


def supervised_examples(folder: Path, encoder: Encoder, share: float = 1.0) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of a share of a file of problems or of chats."""
    for line in read_lines(folder / UPLOADED):
        if within(subject_of(line), share):
            yield from examples_of(line, encoder)


def pairs(folder: Path, encoder: Encoder) -> list[Group]:
    """A group a problem, an item a pair (chosen, rejected)."""
    return [
        Group(key, found.prompt_ids, dict(enumerate(found.responses)), [tuple(pair) for pair in found.pairs])
        for key, found in enumerate(_pair_records(folder, encoder))
    ]


def _pair_records(folder: Path, encoder: Encoder) -> list[PairGroup]:
    """The pairs that stage `pair` wrote, or those of an uploaded preferences file, lines of one prompt together."""
    if not (folder / UPLOADED).exists():
        return PairGroup.read(folder / "pairs.jsonl")
    groups: dict[tuple[int, ...], list[tuple[list[int], list[int]]]] = {}
    for line in read_lines(folder / UPLOADED):
        ids, chosen, rejected = preference_of(line, encoder)
        groups.setdefault(tuple(ids), []).append((chosen, rejected))
    return [_pair_group(list(prompt), found) for prompt, found in groups.items()]


def _pair_group(prompt_ids: list[int], found: list[tuple[list[int], list[int]]]) -> PairGroup:
    places: dict[tuple[int, ...], int] = {}
    for ids in (response for pair in found for response in pair):
        places.setdefault(tuple(ids), len(places))
    numbered = [(places[tuple(chosen)], places[tuple(rejected)]) for chosen, rejected in found]
    return PairGroup(prompt_ids, [list(ids) for ids in places], list(dict.fromkeys(numbered)))


def negatives(folder: Path, encoder: Encoder) -> list[NegativeGroup]:
    """The wrong responses that stage `pair` wrote, or the rejected ones of an uploaded preferences file."""
    if not (folder / UPLOADED).exists():
        return NegativeGroup.read(folder / "negatives.jsonl")
    found = []
    for line in read_lines(folder / UPLOADED):
        prompt = line["input"]["messages"] if line.get("preferred_output") is not None else line["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(map(content_of, prompt))
        ids, chosen, rejected = preference_of(line, encoder)
        found.append(NegativeGroup(text, line.get("solution") or "", ids, [rejected], [chosen]))
    return found


def fitting_groups(groups: Sequence[Group], config: PromptConfig, model: Path, report: Report) -> list[Group]:
    """The items within the configured lengths and the model's own, with the responses that they need.

    Says how many are dropped; raises StageError where none is left.
    """
    return _fitting(groups, config.max_prompt_tokens, config.max_response_tokens, context_length(model), report)


def within_context(groups: Sequence[Group], model: Path, report: Report) -> list[Group]:
    """The same where the model's own length is the only limit."""
    longest = context_length(model)
    return _fitting(groups, longest, longest, longest, report)


def _fitting(groups: Sequence[Group], prompt: int, response: int, longest: int, report: Report) -> list[Group]:
    kept = [group.only(items) for group in groups if (items := _fitting_items(group, prompt, response, longest))]
    count, left = (sum(len(group.items) for group in found) for found in (groups, kept))
    if left < count:
        report.message(
            f"{count - left} of {count} examples are too long and were dropped.", "warn", {"dropped": count - left}
        )
    if not left:
        raise StageError("nothing_to_train_on", _nothing_left(count, longest))
    return kept


def _fitting_items(group: Group, prompt: int, response: int, longest: int) -> list[tuple[int, ...]]:
    if len(group.prompt) > prompt:
        return []
    short = {
        index
        for index, ids in group.responses.items()
        if len(group.scored(index)) <= response and len(group.prompt) + len(ids) <= longest
    }
    return [item for item in group.items if short.issuperset(item)]


def _nothing_left(count: int, longest: int) -> str:
    if not count:
        return "The file holds no examples."
    return (
        f"All {count} examples are longer than max_prompt_tokens or max_response_tokens, or than the model's "
        f"{longest} tokens: raise these settings, or give shorter texts."
    )
