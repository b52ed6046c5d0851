"""The transformers backend: rows decoded together and refilled as they end, each prompt read once for all its samples.

Where a model's rows cannot be decoded in place (see probe.py), prompts of one length are decoded together in the cache
that the model makes for itself: slower, and right for whatever it keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from allo_engine.model.decoding import READ_TOKENS, decoding_bytes, read_tokens
from allo_engine.model.memory import SPARE, Use, available_bytes
from allo_engine.model.rows import give_back_freed_memory, is_out_of_memory
from allo_engine.model.shape import Shape, shape_in_memory
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sampling.batch import Batch
from allo_engine.sampling.caches import InPlace, Own, Rows
from allo_engine.sampling.probe import token_bytes_in_place
from allo_engine.sampling.requests import Finished, Request, Settings

READ_AHEAD = 4
"""Prompts are read for a quarter of the rows at least: one at a time would cost a step each."""

Task = tuple[Request, int]
"""A request and one of its samples."""


class TransformersSampler:
    """Answers with a model in memory. `report` is told where rows do not fit, and may ask to stop at any token;
    `free_bytes` None: what is free then.

    How many rows fitted where more did not is kept in the folder `work`, a device: the stage's other models and a
    resumed run begin with so many.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        report: Report | None = None,
        free_bytes: int | None = None,
        work: Path | None = None,
    ) -> None:
        self._model, self._report, self._free_bytes = model, report, free_bytes
        self._kept = work / f"decoding_batch.{here().rank}" if work else None
        self._token_bytes = token_bytes_in_place(model)
        self._shape = _shape_of(model)

    @property
    def in_place(self) -> bool:
        return self._token_bytes > 0

    def close(self) -> None:
        """Let the model go."""
        del self._model
        give_back_freed_memory()

    def sample(self, requests: Sequence[Request], settings: Settings) -> Iterator[Finished]:
        """Responses as they end. Raises StageError "out_of_memory" where a single one does not fit, and Stopped."""
        left = {(request.number, sample): (request, sample) for request, sample in in_order(requests)}
        most = self._most(settings.rows)
        while left:
            give_back_freed_memory()
            shelf, rows = self._shelf(list(left.values()), most)
            try:
                for finished in self._decode(deque(shelf), settings, rows):
                    del left[finished.number, finished.sample]
                    yield finished
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                most = rows // 2
            if most < 1:
                raise StageError("out_of_memory", _TOO_LARGE)
            if most < rows:
                self._go_on_with(most)

    def _most(self, asked: int) -> int:
        """The rows of a stage that has not run out of memory with fewer."""
        return min(asked, int(self._kept.read_text())) if self._kept and self._kept.exists() else asked

    def _go_on_with(self, rows: int) -> None:
        if self._kept:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            aside = self._kept.with_name(f"{self._kept.name}.tmp")
            aside.write_text(str(rows))
            aside.replace(self._kept)
        if self._report:
            text = f"The device's memory was full: going on with {rows} responses at once."
            self._report.message(text, "warn", {"decoding_batch": rows})

    def _shelf(self, tasks: list[Task], most: int) -> tuple[list[Task], int]:
        """What is decoded next, and in how many rows: all, or where memory is too small for that, what is about as long
        as the longest, so that the others have more rows."""
        rows = self._fitting(tasks, most)
        if rows < min(most, len(tasks)):
            half = max(map(_need, tasks)) // 2
            tasks = [task for task in tasks if _need(task) > half]
        return tasks, min(rows, len(tasks))

    def _fitting(self, tasks: Sequence[Task], most: int) -> int:
        """How many rows the free memory has room for, each as long as the longest, and the prompts that are read with
        them; at least one, at most `most`."""
        if self._shape is None:  # a model whose sizes have other names: rows are halved as soon as they do not fit
            return most
        use = Use("forward", self._model.dtype.itemsize, device_type=self._model.device.type)
        length, prompt = max(map(_need, tasks)), max(len(request.prompt) for request, _ in tasks)
        free = available_bytes(use.device_type) if self._free_bytes is None else self._free_bytes
        fits, fails = 1, most + 1
        while fails - fits > 1:
            rows = (fits + fails) // 2
            read = read_tokens(rows, prompt)
            needed = decoding_bytes(self._shape, use, rows, length, read, self._token_bytes)
            fits, fails = (rows, fails) if needed <= SPARE * free else (fits, rows)
        return fits

    def _decode(self, tasks: deque[Task], settings: Settings, rows: int) -> Iterator[Finished]:
        length = max(map(_need, tasks))
        kept: Rows = InPlace(self._model, rows, length) if self.in_place else Own(self._model)
        batch = Batch(kept, settings, rows, max(request.max_tokens for request, _ in tasks), self._model.device)
        read: deque[tuple[int, Task]] = deque()
        while tasks or read or batch.running:
            if self._report and self._report.stop_requested:
                raise Stopped
            while batch.free() and (read or tasks) and (kept.joins or not batch.running):
                read = read or _read(kept, next_tasks(tasks, batch.free(), rows, kept.joins))
                begun = [read.popleft() for _ in range(min(batch.free(), len(read)))]
                batch.admit([prompt for prompt, _ in begun], [task for _, task in begun])
            yield from batch.step()


def _shape_of(model: PreTrainedModel) -> Shape | None:
    try:
        return shape_in_memory(model)
    except KeyError:
        return None


def _need(task: Task) -> int:
    """Tokens that a row keeps at most: its prompt and its response but the last token."""
    return len(task[0].prompt) + task[0].max_tokens - 1


@torch.inference_mode()
def _read(kept: Rows, tasks: Sequence[Task]) -> deque[tuple[int, Task]]:
    """Read the tasks' prompts, each once: the tasks with their prompts' places."""
    prompts = {request.number: request.prompt for request, _ in tasks}
    kept.read(list(prompts.values()))
    places = {number: place for place, number in enumerate(prompts)}
    return deque((places[task[0].number], task) for task in tasks)


def in_order(requests: Sequence[Request]) -> list[Task]:
    """The longest prompts first: what does not fit shows at once, and prompts of like length are read together."""
    ordered = sorted(requests, key=lambda request: (-len(request.prompt), request.number))
    return [(request, sample) for request in ordered for sample in request.samples]


def next_tasks(tasks: deque[Task], free: int, rows: int, joins: bool) -> list[Task]:
    """Take the tasks whose prompts are read next: for all free rows and, where rows join later, some for then."""
    enough = max(free, rows // READ_AHEAD) if joins else free
    taken: list[Task] = []
    prompts = 0
    while tasks and not (len(taken) >= enough and (not joins or tasks[0][0] is not taken[-1][0])):
        first, request = (taken or tasks)[0][0], tasks[0][0]
        if not taken or request is not taken[-1][0]:
            prompts += 1
            too_many = prompts > 1 and prompts * len(first.prompt) > READ_TOKENS
            if too_many or not (joins or len(request.prompt) == len(first.prompt)):
                break
        taken.append(tasks.popleft())
    return taken


_TOO_LARGE = (
    "The device's memory is full with a single response at once: lower max_prompt_tokens and max_response_tokens, or "
    "take a smaller model."
)
