"""A process of its own for each test: vLLM and DeepSpeed take torch.distributed for the whole of theirs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def alone(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """What the function returns, or raises, in a process that ends with it. Everything crosses by pickle."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()
