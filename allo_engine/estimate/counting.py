"""Counts of work, made with the stages' own packing: the rows are those that a stage would pack, the steps of decoding
those that it would take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from allo_engine.bases_trained import BaselineConfig
from allo_engine.estimate.loads import Decoding, Passes
from allo_engine.model.attention import attended
from allo_engine.model.sequences import Group, build_row
from allo_engine.sampling import Request
from allo_engine.sampling.transformers import in_order, next_tasks
from allo_engine.training.trl_plan import Plan, bare, parts, passes_of


def passes(rows: Iterable[list[Group]]) -> Passes:
    """What rows of groups are, packed as the stages pack them."""
    total = Passes()
    for groups in rows:
        row = build_row(groups)
        length = row.ids.numel()
        total = total.plus(Passes(length, attended(row.ends), len(row.targets), 1, length))
    return total


def padded_passes(groups: Sequence[Group], config: BaselineConfig, budget: int, device_type: str) -> tuple[Passes, int]:
    """An epoch of TRL's, and its steps: sequences padded to the longest of their pass, which attend to all of it. Its
    head scores every position, but on a GPU those alone that count.
    """
    items = [bare(group, item) for group in groups for item in group.items]
    counted = [sum(len(group.scored(index)) for index in item) for group in groups for item in group.items]
    plan, total = Plan(groups, items, config), Passes()
    cut = passes_of(config.batch_size, 1, max(item.padded for item in items), budget)
    for step in range(plan.steps_an_epoch):
        for (places,) in parts(plan.places(step), cut, 1):
            own = [items[place] for place in places] or [plan.nothing()]
            width = max(item.width for item in own)
            tokens = width * sum(item.sequences for item in own)
            scored = sum(counted[place] for place in places) if device_type == "cuda" else tokens
            total = total.plus(Passes(tokens, tokens * width, scored, 1, tokens))
    return total, plan.steps_an_epoch


def decoding(prompts: Sequence[int], lengths: Sequence[Sequence[int]], batch: int) -> Decoding:
    """What `Sampler.sample` does with prompts and the lengths of their responses, where rows are decoded in place: the
    tasks that it reads, rows that others take when they end.
    """
    requests = [
        Request(number, range(prompt), 0, max(lengths[number]), range(len(lengths[number])))
        for number, prompt in enumerate(prompts)
    ]
    tasks, read = deque(in_order(requests)), deque[tuple[int, int]]()
    rows = min(batch, len(tasks))
    running: list[tuple[int, int]] = []  # (the step at which a row ends, how much further than the step it stands)
    total, now = Decoding(decoded=sum(map(sum, lengths))), 0
    while tasks or read or running:
        while len(running) < rows and (read or tasks):
            if not read:
                taken = next_tasks(tasks, rows - len(running), rows, joins=True)
                read.extend((prompts[request.number], lengths[request.number][sample]) for request, sample in taken)
                total = total.plus(_reading([len(request.prompt) for request in {task[0] for task in taken}]))
            prompt, length = read.popleft()
            running.append((now + length, prompt - now))
        until = min(end for end, _ in running)
        total = total.plus(_steps(len(running), now, until, max(offset for _, offset in running)))
        running, now = [row for row in running if row[0] > until], until
    return replace(total, rows=rows, length=max(prompts) + max(map(max, lengths)))


def _reading(prompts: Sequence[int]) -> Decoding:
    """Prompts read together but for their last tokens, padded to the longest."""
    width = max(prompts) - 1
    tokens = width * len(prompts)
    return Decoding(Passes(tokens, tokens * width, 0, int(width > 0), tokens))


def _steps(rows: int, start: int, stop: int, offset: int) -> Decoding:
    """Steps [start, stop) of as many rows, each of which reads as many tokens as the longest stands at."""
    count = stop - start
    cached = rows * (count * (start + offset) + count * (count - 1) // 2)
    return Decoding(steps=count, row_steps=rows * count, cached=cached)
