"""Which contents the store has, asked while no transaction is open: a store that does not answer holds up whoever asks,
and no lock of the database.

What a verb does not know yet it takes for granted; before it commits it is undone, the store is asked, and it is done
again with the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from service.db import Database

P = ParamSpec("P")
T = TypeVar("T")


class Contents(Protocol):
    """What knows which contents are there: every store does."""

    def exists(self, sha256: str, /) -> bool:
        """Whether the content is there. Raises StoreAway."""


C = TypeVar("C", bound=Contents)


class _Unanswered(Exception):
    """What was done rests on what was taken for granted."""


@dataclass
class _Answers:
    known: dict[str, bool]
    questions: dict[str, Contents] = field(default_factory=dict)


_ANSWERS: ContextVar[_Answers | None] = ContextVar("answers", default=None)


def is_there(store: Contents, sha256: str) -> bool:
    """Whether the store has a content. Raises StoreAway, where nobody asks apart."""
    answers = _ANSWERS.get()
    if answers is None:
        return store.exists(sha256)
    if sha256 not in answers.known:
        answers.questions[sha256] = store
    return answers.known.get(sha256, True)


def asked_apart(database: Database, do: Callable[[], T], commits: bool = True) -> T:
    """What `do()` returns, all of it in one transaction where it `commits`, with the store asked between two tries of
    it. Inside another such call, or a transaction, it is a part of that. Raises what `do` raises, and StoreAway."""
    if _ANSWERS.get() is not None or database.is_open:
        return do()
    known = dict[str, bool]()
    while True:
        answers = _Answers(known)
        token = _ANSWERS.set(answers)
        try:
            with suppress(_Unanswered), database.transaction() if commits else nullcontext():
                done = do()
                if not answers.questions:
                    return done
                raise _Unanswered
        finally:
            _ANSWERS.reset(token)
        known |= {sha256: store.exists(sha256) for sha256, store in answers.questions.items()}


def asks_apart(
    verb: Callable[Concatenate[Database, C, P], T],
) -> Callable[Concatenate[Database, C, P], T]:
    """For a verb that commits what rests on the contents of the store."""

    @wraps(verb)
    def asking(database: Database, store: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return asked_apart(database, lambda: verb(database, store, *args, **kwargs))

    return asking
