"""The responses that are decoded together: `step` gives each a token, `compact` lets others have ended ones' places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from allo_engine.model.decoding import wide_rows
from allo_engine.sampling.caches import Rows
from allo_engine.sampling.nucleus import CANDIDATES, MORE, Drawn, candidates_for, draw
from allo_engine.sampling.requests import Finished, Request, Response, Settings


@dataclass
class Row:
    """A response on its way. `candidates`: among how many tokens its nucleus is looked for; `cut`: nobody wants more of
    it."""

    request: Request
    sample: int
    candidates: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    cut: bool = False

    def position(self) -> int:
        """Where the token stands that the next step appends: the prompt's last one, then the response's."""
        return len(self.request.prompt) - 1 + len(self.ids)

    def ended(self, ends: Sequence[int]) -> bool:
        return self.cut or (bool(self.ids) and (self.ids[-1] in ends or len(self.ids) == self.request.max_tokens))

    def finished(self) -> Finished:
        return Finished(self.request.number, self.sample, Response(self.ids, self.logps))


class Batch:
    """Rows of a cache, and beside each its last token, its position and its uniforms on the device.

    A step reads the device once. A row whose nucleus was not found among its candidates stays where it is for that
    step, and looks at more of them in the next.
    """

    def __init__(self, kept: Rows, settings: Settings, rows: int, most_tokens: int, device: torch.device) -> None:
        self.running: list[Row] = []
        self._kept, self._settings = kept, settings
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions, self._drawn = torch.zeros_like(self._tokens), torch.zeros_like(self._tokens)
        self._uniforms = torch.zeros(rows, most_tokens, dtype=torch.float64, device=device)

    def free(self) -> int:
        return len(self._tokens) - len(self.running)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[int], waiting: Sequence[tuple[Request, int]]) -> None:
        """Let responses begin; `prompts` says which of the prompts that were read last each begins with."""
        begun = slice(len(self.running), len(self.running) + len(waiting))
        self._kept.begin(prompts, range(begun.start, begun.stop))
        self.running += [Row(request, sample, CANDIDATES) for request, sample in waiting]
        device = self._tokens.device
        self._tokens[begun] = torch.tensor([request.prompt[-1] for request, _ in waiting], device=device)
        self._positions[begun] = torch.tensor([len(request.prompt) - 1 for request, _ in waiting], device=device)
        self._drawn[begun] = 0
        if self._settings.temperature:
            uniforms = np.zeros((len(waiting), self._uniforms.shape[1]))
            for row, (request, sample) in zip(uniforms, waiting, strict=True):
                row[: request.max_tokens] = request.uniforms(sample)
            self._uniforms[begun] = torch.from_numpy(uniforms).to(device)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Give every row its next token; what has ended leaves."""
        count = len(self.running)
        longest = max(row.position() for row in self.running)
        logits = self._kept.logits(self._tokens[:count], self._positions[:count], longest)
        tokens, sizes, found = self._draw(logits)
        logps = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        self._tokens[:count] = torch.where(found, tokens, self._tokens[:count])
        self._positions[:count] += found
        self._drawn[:count] += found
        read = torch.stack([tokens.double(), logps.double(), sizes.double(), found.double()]).tolist()
        for row, token, logp, size, was_found in zip(self.running, *read, strict=True):
            if was_found:
                row.ids.append(int(token))
                row.logps.append(logp)
            row.candidates = candidates_for(int(size), bool(was_found))
        return self.compact()

    def _draw(self, logits: Tensor) -> Drawn:
        """Rows whose nucleus is likely to be small look for it among few candidates, the others among more, a few of
        them at a time."""
        count, temperature, top_p = len(logits), self._settings.temperature, self._settings.top_p
        uniforms = self._uniforms[:count].gather(1, self._drawn[:count, None])[:, 0]
        drawn = draw(logits, uniforms, temperature, top_p, CANDIDATES)

        def among(candidates: int, rows: Tensor) -> None:
            for places in rows.split(wide_rows(logits.shape[1], logits.device.type)):
                found = draw(logits[places], uniforms[places], temperature, top_p, candidates)
                for some, those in zip(drawn, found, strict=True):
                    some[places] = those

        for candidates in sorted({row.candidates for row in self.running} - {CANDIDATES}) if temperature else ():
            wide = [place for place, row in enumerate(self.running) if row.candidates == candidates]
            among(candidates, torch.tensor(wide, device=logits.device))
        candidates = CANDIDATES
        while not self._kept.joins and not drawn.found.all():  # rows that cannot join cannot wait a step either
            candidates *= MORE
            among(candidates, (~drawn.found).nonzero()[:, 0])
        return drawn

    def compact(self) -> list[Finished]:
        """Take out what has ended: the last rows take its places."""
        ended = [place for place, row in enumerate(self.running) if row.ended(self._settings.ends)]
        finished = [self.running[place].finished() for place in ended]
        count = len(self.running) - len(ended)
        places = [place for place in ended if place < count]
        sources = sorted(set(range(count, len(self.running))) - set(ended))
        for source, place in zip(sources, places, strict=True):
            self.running[place] = self.running[source]
        del self.running[count:]
        if ended and count:
            self._kept.move(sources, places, count)
            given, taken = (torch.tensor(rows, device=self._tokens.device) for rows in (sources, places))
            for beside in (self._tokens, self._positions, self._drawn, self._uniforms) if sources else ():
                beside[taken] = beside[given]
        return finished
