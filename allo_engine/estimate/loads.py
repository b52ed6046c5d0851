"""What a stage computes, in counts that its settings and data alone decide: rows, tokens, steps, bytes.

The rows are those that the stage itself would pack, the steps of decoding those that it would take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from allo_engine.config import BaselineConfig, Moments
from allo_engine.model.attention import attended
from allo_engine.model.memory import Kind
from allo_engine.model.sequences import Group, build_row
from allo_engine.sampling import Request
from allo_engine.sampling.transformers import in_order, next_tasks
from allo_engine.training.trl_plan import Plan, bare, parts, passes_of


@dataclass(frozen=True)
class Passes:
    """Rows through the model: their tokens, the pairs attended, the positions scored, and the longest of them."""

    tokens: float = 0.0
    attended: float = 0.0
    scored: float = 0.0
    rows: float = 0.0
    longest: int = 0

    def plus(self, other: Passes) -> Passes:
        return Passes(
            self.tokens + other.tokens,
            self.attended + other.attended,
            self.scored + other.scored,
            self.rows + other.rows,
            max(self.longest, other.longest),
        )

    def times(self, factor: float) -> Passes:
        return Passes(
            self.tokens * factor, self.attended * factor, self.scored * factor, self.rows * factor, self.longest
        )


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


@dataclass(frozen=True)
class Decoding:
    """Responses decoded: prompts as they are padded, steps, rows of all steps, cached tokens that they read, and what
    is decoded. At most `rows` rows, of at most `length` tokens, are decoded at once.
    """

    prompts: Passes = Passes()
    steps: float = 0.0
    row_steps: float = 0.0
    cached: float = 0.0
    decoded: float = 0.0
    rows: int = 0
    length: int = 0

    def plus(self, other: Decoding) -> Decoding:
        return Decoding(
            self.prompts.plus(other.prompts),
            self.steps + other.steps,
            self.row_steps + other.row_steps,
            self.cached + other.cached,
            self.decoded + other.decoded,
            max(self.rows, other.rows),
            max(self.length, other.length),
        )

    def times(self, factor: float) -> Decoding:
        return Decoding(
            self.prompts.times(factor),
            self.steps * factor,
            self.row_steps * factor,
            self.cached * factor,
            self.decoded * factor,
            self.rows,
            self.length,
        )


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


@dataclass(frozen=True)
class Load:
    """What a stage computes, reads and writes. `kind` and `ratio` say what it trains; `updates` its optimizer's steps;
    `models` the checkpoints it loads, `checkpoints` those it writes. `judging` are passes of the rewriter. A teacher
    is `asked` so many times, one question after another, and writes so many tokens in all of them. `by_trl` says that
    TRL trains it, `served` that vLLM decodes.
    """

    stage: str
    kind: Kind = "forward"
    ratio: float = 1.0
    forward: tuple[Passes, ...] = ()
    judging: Passes = Passes()
    training: Passes = Passes()
    decoding: Decoding = Decoding()
    updates: float = 0.0
    judged: float = 0.0
    asked: float = 0.0
    written: float = 0.0
    streamed: bool = False
    models: int = 1
    checkpoints: int = 0
    deltas: int = 0
    masks: int = 0
    gradient_checkpointing: bool = False
    moments: Moments = "float32"
    checkpoint_seconds: float = 60.0
    weight_bytes: int = 4
    by_trl: bool = False
    served: bool = False

    def tokens(self) -> int:
        """Tokens of all passes and of all that is decoded."""
        rows = self.training.tokens + self.judging.tokens + sum(found.tokens for found in self.forward)
        return round(rows + self.decoding.prompts.tokens + self.decoding.decoded)
