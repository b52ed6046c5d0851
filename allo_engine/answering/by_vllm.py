"""Answers by vLLM: all questions to one model side by side, each new one among those that are being answered.

vLLM holds the base once, in this process, and a model's sparse checkpoint is put over it in place. What was computed
with other weights must not be read on: one model answers at a time, a question to another waits until those before it
have their answers, and at each change the cache of prompts is emptied. Before anybody is answered, vLLM answers a
canary as the engine does, and shows that it reads its weights from where they are changed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from allo_engine.answering.questions import Question, Reader, Said, Telling, began, failed
from allo_engine.checkpoints.names import names_of
from allo_engine.checkpoints.overlay import Overlay
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.rows import give_back_freed_memory
from allo_engine.report import StageError
from allo_engine.sampling.canary import TOKENS, disagreement, greedy_logps
from allo_engine.sampling.requests import Finished, Request, Response, Settings
from allo_engine.sampling.vllm import environment, written
from allo_engine.sampling.vllm_engine import answer, drawn, started
from allo_engine.sampling.vllm_weights import in_vllm, keep_plain, try_out

ROWS = 32
"""Responses that are decoded at once; more wait within vLLM."""

LEAST_CACHE = 2**30
"""Bytes of keys and values that vLLM may take, or as many as the weights have: so other bases have room beside it."""

TOLD_SECONDS = 0.1
"""Between two pieces of an answer that nothing is to stop."""

CANARIES = (
    "The three primary colours are red, yellow and",
    "Question: a baker sells 12 loaves in the morning and 30 in the afternoon. How many is that?\nAnswer:",
)


class Answer:
    """A question under way: what each of its responses has so far."""

    def __init__(self, question: Question, telling: Telling) -> None:
        self.id, self.telling = question.id, telling
        self._ids: list[list[int]] = [[] for _ in range(question.n)]
        self._told = [0.0] * question.n

    def grown(self, sample: int, tokens: Sequence[int]) -> Iterator[Said]:
        """What is to be told, now that there are these tokens more."""
        telling, ids, now = self.telling, self._ids[sample], time.monotonic()
        ids.extend(tokens)
        if telling.each or telling.reason(ids) or now - self._told[sample] >= TOLD_SECONDS:
            self._told[sample] = now
            yield from telling.more(sample, ids)
        if telling.over:
            yield {"id": self.id, "type": "done"}

    @property
    def open(self) -> list[str]:
        """The responses that are not at their end, by their names in vLLM."""
        return [f"{self.id}/{sample}" for sample in range(len(self._ids)) if not self.telling.has_ended(sample)]


class VllmAnswerer:
    """The models that share the base in a folder. Raises StageError where vLLM cannot serve them so."""

    def __init__(self, base: Path) -> None:
        self._reader, dtype = Reader(base), dtype_of("auto")
        model = load_model(base, dtype)  # before vLLM takes its memory
        asked = [Request(place, self._reader.encoder.text(text), 0, TOKENS) for place, text in enumerate(CANARIES)]
        expected = [greedy_logps(model, request) for request in asked]
        names, size = names_of(model, base), sum(weight.nbytes for weight in model.parameters())
        del model
        give_back_freed_memory()
        os.environ |= environment()
        keep_plain()
        name = str(dtype).removeprefix("torch.")
        _, self._engine = started(str(base), name, -1, ROWS, max(size, LEAST_CACHE), async_scheduling=False)
        self._reader.context = min(self._reader.context, self._engine.vllm_config.model_config.max_model_len)
        for whole, response in zip(expected, self._greedy(asked), strict=True):
            if wrong := disagreement(whole, response, dtype):
                raise StageError("sampler_disagrees", f"vLLM does not answer as the model does: {wrong}.")
        where = self._engine.apply_model(lambda served: in_vllm(served, base, names))[0]
        short = [replace(request, max_tokens=1) for request in asked]
        try_out(where, base, names, lambda: self._greedy(short))
        self._overlay = Overlay(where, base)
        self._waiting: deque[tuple[Question, Request]] = deque()
        self._answers: dict[str, Answer] = {}

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._answers

    def ask(self, question: Question) -> Iterator[Said]:
        """Take a question; why there is no answer, if there is none."""
        try:
            self._waiting.append((question, self._reader.request(question)))
        except StageError as error:
            yield failed(question.id, error)

    def forget(self, name: str) -> None:
        self._waiting = deque(pair for pair in self._waiting if pair[0].id != name)
        if found := self._answers.pop(name, None):
            self._engine.abort_request(found.open)

    def turns(self) -> Iterator[Said]:
        """Let in who may be answered now, and a token more for all."""
        yield from self._let_in()
        if self._answers:
            for output in self._engine.step():
                yield from self._grown(output)

    def _let_in(self) -> Iterator[Said]:
        """In the order in which they came: so nobody waits for ever behind questions to another model."""
        while self._waiting:
            question, request = self._waiting[0]
            if question.over != self._overlay.shown and self._answers:
                return
            self._waiting.popleft()
            try:
                self._show(question.over)
            except StageError as error:
                yield failed(question.id, error)
                continue
            self._begin(question, request)
            yield began(question.id, request)

    def _show(self, delta: Path | None) -> None:
        """Have the model be this one, while nothing is under way. Raises StageError, with the base shown."""
        if delta == self._overlay.shown:
            return
        _synchronized()
        try:
            self._overlay.show(delta)
        finally:
            _synchronized()
            self._forget_prompts()

    def _begin(self, question: Question, request: Request) -> None:
        encoder = self._reader.encoder
        settings = asdict(Settings(encoder.ends, question.temperature, question.top_p))
        self._answers[question.id] = Answer(question, Telling(question, request, encoder))
        for sample in request.samples:
            how = drawn(settings, request.stream_seed(sample), request.max_tokens, growing=True)
            self._engine.add_request(f"{question.id}/{sample}", {"prompt_token_ids": list(request.prompt)}, how)

    def _grown(self, output: Any) -> Iterator[Said]:
        name, _, sample = output.request_id.rpartition("/")
        found = self._answers.get(name)
        if found is None:
            return
        yield from found.grown(int(sample), output.outputs[0].token_ids)
        if found.telling.has_ended(int(sample)) and not output.finished:  # at a text that stops it
            self._engine.abort_request([output.request_id])
        if found.telling.over:
            del self._answers[name]

    def _greedy(self, asked: Sequence[Request]) -> list[Response]:
        """What the model answers as it is now, while nothing is under way."""
        found: list[Finished] = []
        settings = asdict(Settings(ends=(), rows=ROWS))
        told = {"requests": list(map(written, asked)), "settings": settings, "logps": True}
        answer(self._engine, told, lambda line: found.append(_finished(line)))
        self._forget_prompts()
        return [one.response for one in sorted(found, key=lambda one: one.number)]

    def _forget_prompts(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its cache of prompts, which other weights computed")


def _finished(line: dict[str, Any]) -> Finished:
    number, sample, *response = line["finished"]
    return Finished(number, sample, Response(*response))


def _synchronized() -> None:
    """What a device was asked to do, it has done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
