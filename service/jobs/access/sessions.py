"""Sessions of the dashboard: begun with a key, known by a random token of which only the hash is kept. One is over with
its key, with the time that it was given, or when it is ended."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from service.db import Database
from service.jobs.access.keys import find_key, status
from service.jobs.repository import access
from service.jobs.tables import ApiKey, SignIn


@dataclass(frozen=True)
class Session:
    """One that may go on: the key that it began with, and the word that each of its forms must send along."""

    key: ApiKey
    form_token: str


@dataclass(frozen=True)
class NewSession:
    """One just begun. `token` is what the browser sends; it exists nowhere else."""

    token: str
    key: ApiKey


def sign_in(database: Database, secret: str, lifetime: float) -> NewSession | None:
    """Begins a session of `lifetime` seconds, where the secret is a valid key's."""
    key = find_key(database, secret)
    if key is None:
        return None
    token, now = secrets.token_urlsafe(32), database.now()
    with database.transaction() as session:
        access.forget_past_sign_ins(session, now)
        session.add(SignIn(hash=_hash(token), key_id=key.id, created_at=now, expires_at=now + int(lifetime)))
    return NewSession(token, key)


def find_session(database: Database, token: str) -> Session | None:
    """The session that a browser sent, where it and its key are valid."""
    now = database.now()
    with database.snapshot() as session:
        key = access.key_of_sign_in(session, _hash(token), now)
    return Session(key, form_token(token)) if key is not None and status(key, now) == "valid" else None


def sign_out(database: Database, token: str) -> None:
    """Ends a session; of one that has ended it changes nothing."""
    with database.transaction() as session:
        access.forget_sign_in(session, _hash(token))


def form_token(token: str) -> str:
    """The word of this session that no other site can know: it tells the token of nobody's session."""
    return hmac.new(token.encode("utf-8", "surrogateescape"), b"form", hashlib.sha256).hexdigest()


def _hash(token: str) -> str:
    """A plain hash suffices, as for keys: nobody guesses 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
