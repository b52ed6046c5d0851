"""The canary: a few prompts answered greedily by the model as the engine has it, to hold another backend's against.

Both must write the same tokens with the same log-probabilities, up to where two tokens are as likely as rounding can
tell: a backend may take either, and behind it the two have different texts to go on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.sampling.caches import Own
from allo_engine.sampling.requests import Request, Response

PROMPTS, TOKENS = 4, 16

FLOAT32_NATS, ROUNDED_NATS = 0.01, 0.5
"""How far log-probabilities may lie apart. SmolLM2's, by vLLM and by transformers on one CPU, lie 0.00002 apart at most
in float32, and 0.2 in bfloat16.
"""


def canaries(requests: Sequence[Request]) -> list[Request]:
    """The shortest of these prompts, each to be answered once by a few tokens."""
    shortest = sorted(requests, key=lambda request: (len(request.prompt), request.number))[:PROMPTS]
    return [replace(request, max_tokens=min(TOKENS, request.max_tokens), samples=(0,)) for request in shortest]


@torch.inference_mode()
def greedy_logps(model: PreTrainedModel, request: Request) -> Tensor:
    """logπ of the whole vocabulary at each token of the model's likeliest response, float32 [T, V], on the CPU."""
    kept = Own(model)
    kept.read([request.prompt])
    kept.begin([0], range(1))
    token = torch.tensor(request.prompt[-1:], device=model.device)
    rows = []
    for place in range(len(request.prompt) - 1, len(request.prompt) - 1 + request.max_tokens):
        rows.append(kept.logits(token, torch.tensor([place], device=model.device), place).log_softmax(-1)[0])
        token = rows[-1].argmax(-1, keepdim=True)
    return torch.stack(rows).cpu()


def disagreement(expected_TV: Tensor, found: Response, dtype: torch.dtype) -> str | None:
    """Where a greedy response is not the model's own, in words; None where it is."""
    most = FLOAT32_NATS if dtype == torch.float32 else ROUNDED_NATS
    for place, (token, logp) in enumerate(zip(found.ids, found.logps or [], strict=True)):
        own_V = expected_TV[place]
        best, own = float(own_V.max()), float(own_V[token])
        if not (best - own <= most and abs(logp - own) <= most):  # so that NaN disagrees
            return (
                f"token {place + 1} is {token} with a log-probability of {logp:.3f}, where the model has {own:.3f} for "
                f"it and {best:.3f} for {int(own_V.argmax())}"
            )
        if token != int(own_V.argmax()):
            return None
    return None
