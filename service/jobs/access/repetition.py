"""Repetition without harm: a request whose answer was lost is sent again, and nothing is done twice.

What a request changes and what it answers are one transaction, so that an answer is known exactly where the change
happened. Two things mark a repetition: the client's own Idempotency-Key, or its word that it tries again, which counts
together with the same key, method, path, query and body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs.errors import Conflict, InvalidRequest, NotFound
from service.jobs.presence import asked_apart
from service.jobs.repository import access
from service.jobs.tables import PastCall

Answer = Mapping[str, Any]

SECRETS = frozenset({"secret", "signing_secret"})
"""The fields of an answer that are never kept: they are shown once."""


@dataclass(frozen=True)
class Call:
    """A request that changes something. `fingerprint` is of its method, path, query and body; `subject` is the path of
    the thing that it changes, None where it makes one. An answer is remembered for `retry_window` seconds, under the
    client's own key for `key_window`. `note` writes down, in the same transaction, that it was done and answered so."""

    key_id: str
    fingerprint: str
    subject: str | None = None
    idempotency_key: str | None = None
    is_retry: bool = False
    retry_window: float = 600
    key_window: float = 86_400
    note: Callable[[Answer], None] = lambda _: None

    @property
    def token(self) -> str:
        """Under what the call is remembered: of those that change one thing, only the last is."""
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        return f"call:{self.fingerprint}" if self.subject is None else f"on:{sha256_of(self.subject)}"

    def of_content(self, sha256: str, name: str) -> Call:
        """The same call, known by what was uploaded: a client draws a form's boundary anew for each try."""
        return replace(self, fingerprint=sha256_of(self.fingerprint, sha256, name))


def once(
    database: Database, call: Call, do: Callable[[], Answer], reissue: Callable[[Answer], Answer] | None = None
) -> Answer:
    """What `do()` answers, or answered when this very call was made before.

    A call that makes something is looked up first. One that changes a thing which is there is simply done again, and
    where that is refused because the first try had done it, the answer is what it was then: a cancel, its undoing and
    another cancel are three calls, however alike two of them look. `reissue` makes an answer whose secret was not kept
    whole again. Raises what `do` raises, and InvalidRequest for an Idempotency-Key that came with another request.
    """

    def done() -> Answer:
        with database.transaction() as session:
            now = database.now()
            access.lock_keys_beside(session, call.key_id)
            if call.idempotency_key is not None or (call.subject is None and call.is_retry):
                earlier = _recalled(session, call, now)
                if earlier is not None:
                    return reissue(earlier) if reissue else earlier
            answer = do()
            call.note(answer)
            _remember(session, call, answer, now)
            return answer

    try:
        return asked_apart(database, done)
    except (NotFound, Conflict):
        with database.snapshot() as session:
            earlier = _recalled(session, call, database.now()) if call.is_retry else None
        if earlier is None:
            raise
        return earlier


def recalled(database: Database, call: Call) -> Answer | None:
    """What this very call was answered before, where it says that it is a repetition: for what is done outside of any
    transaction, because somebody else is waited for. Whoever does it says so by `remember`. Raises as `once`."""
    if call.idempotency_key is None and not call.is_retry:
        return None
    with database.snapshot() as session:
        return _recalled(session, call, database.now())


def remember(database: Database, call: Call, answer: Answer) -> None:
    """Notes that the call was done, and what it was answered."""
    with database.transaction() as session:
        call.note(answer)
        _remember(session, call, answer, database.now())


def sha256_of(*parts: str) -> str:
    """One name for several texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _recalled(session: Session, call: Call, now: int) -> Answer | None:
    earlier = access.past_call(session, call.key_id, call.token)
    if earlier is None or earlier.expires_at < now:
        return None
    if earlier.fingerprint == call.fingerprint:
        return earlier.answer
    if call.idempotency_key is None:
        return None
    raise InvalidRequest(
        "This Idempotency-Key was sent before with another request: use a new key for a new request.",
        "Idempotency-Key",
        "idempotency_key_reused",
    )


def _remember(session: Session, call: Call, answer: Answer, now: int) -> None:
    window = call.retry_window if call.idempotency_key is None else call.key_window
    kept = {name: value for name, value in answer.items() if name not in SECRETS}
    access.forget_past_calls(session, now)
    row = PastCall(key_id=call.key_id, token=call.token, fingerprint=call.fingerprint, answer=kept)
    row.expires_at = now + int(window)
    session.merge(row)
