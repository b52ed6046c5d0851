"""API keys: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs.errors import Conflict, InvalidRequest, NotFound
from service.jobs.ids import new_id
from service.jobs.repository import Page, access
from service.jobs.tables import ApiKey

Scope = Literal["read", "submit", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

OWNER = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


MOST_UNKNOWN = 256
"""Secrets that are remembered to be none; whoever sends more of them has each looked up."""


@dataclass(frozen=True)
class NewKey:
    """A key just made. `secret` is what the client sends; it exists nowhere else."""

    id: str
    secret: str


def create_key(
    database: Database, owner: str, scopes: Sequence[Scope] = ("read", "submit"), expires_at: int | None = None
) -> NewKey:
    """Makes a key of `owner`: everything that the key makes is that owner's, and other owners do not see it."""
    if not OWNER.fullmatch(owner):
        raise InvalidRequest("An owner is 1 to 63 of a-z, 0-9, - and _, and starts with a letter or digit.", "owner")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise InvalidRequest(f"Scopes are one or more of {', '.join(SCOPES)}.", "scopes")
    if expires_at is not None and expires_at <= database.now():
        raise InvalidRequest(
            "The key would have expired already: expires_at must lie in the future.", "expires_at", "expired"
        )
    key = ApiKey(id=new_id("key"), owner=owner, scopes=sorted(set(scopes)), expires_at=expires_at)
    with database.transaction() as session:
        key.created_at = database.now()
        secret = _draw_secret(key)
        session.add(key)
    return NewKey(key.id, secret)


def find_key(database: Database, secret: str) -> ApiKey | None:
    """The key that a client sent, where it is one of ours, neither revoked nor expired."""
    with database.snapshot() as session:
        key = access.key_by_hash(session, _hash(secret))
    return key if key is not None and status(key, database.now()) == "valid" else None


def is_valid(database: Database, key_id: str) -> bool:
    """Whether a key may still be used."""
    with database.snapshot() as session:
        key = access.key(session, key_id)
    return key is not None and status(key, database.now()) == "valid"


class KeyRing:
    """Keys that were looked up a moment ago: a key that is revoked elsewhere opens nothing after `seconds`. What was no
    key then is none now: secrets are drawn, so that nobody has sent one before it is made."""

    def __init__(self, database: Database, seconds: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._seconds, self._clock = database, seconds, clock
        self._found: dict[str, tuple[float, ApiKey]] = {}
        self._unknown: dict[str, float] = {}

    def is_unknown(self, secret: str) -> bool:
        """Whether it was looked up a moment ago, and there was none: this asks no database."""
        return self._clock() < self._unknown.get(_hash(secret), 0.0)

    def known(self, secret: str) -> ApiKey | None:
        """The key, where it was found a moment ago: this asks no database."""
        until, key = self._found.get(_hash(secret), (0.0, None))
        if key is None or self._clock() >= until:
            return None
        return key if key.expires_at is None or key.expires_at > self._database.now() else None

    def find(self, secret: str) -> ApiKey | None:
        """The key, looked up."""
        key, now = find_key(self._database, secret), self._clock()
        if key is not None:
            self._found = {name: kept for name, kept in self._found.items() if kept[0] > now}
            self._found[key.hash] = (now + self._seconds, key)
        else:
            left = {name: until for name, until in self._unknown.items() if until > now}
            self._unknown = {**left, _hash(secret): now + self._seconds} if len(left) < MOST_UNKNOWN else left
        return key

    def forget(self, key_id: str) -> None:
        """Looks the key up the next time that it comes."""
        self._found = {name: kept for name, kept in self._found.items() if kept[1].id != key_id}


def list_keys(database: Database) -> Sequence[ApiKey]:
    """Every key ever made, oldest first."""
    with database.snapshot() as session:
        return access.keys(session)


def read_keys(database: Database, page: Page, owner: str | None = None) -> tuple[list[ApiKey], bool]:
    """Keys, of one owner where that is asked for, and whether there are more. Raises NotFound for an unknown
    `page.after`."""
    with database.snapshot() as session:
        return access.keys_page(session, page, owner)


def read_key(database: Database, key_id: str) -> ApiKey:
    """The key. Raises NotFound."""
    with database.snapshot() as session:
        return _key(session, key_id)


def revoke_key(database: Database, key_id: str) -> None:
    """Ends a key at once, and whatever session of the dashboard it began. Raises NotFound."""
    with database.transaction() as session:
        key = _key(session, key_id)
        key.revoked_at = key.revoked_at or database.now()
        access.forget_sign_ins_of(session, key_id)


def rotate_key(database: Database, key_id: str) -> NewKey:
    """Gives a key another secret; the old one, and sessions that it began, open nothing more. Raises NotFound, and
    Conflict for a revoked key."""
    with database.transaction() as session:
        key = _key(session, key_id)
        if key.revoked_at is not None:
            raise Conflict("The key is revoked: make another one.")
        access.forget_sign_ins_of(session, key_id)
        return NewKey(key.id, _draw_secret(key))


def status(key: ApiKey, now: int) -> str:
    """valid, revoked or expired."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "valid"


def _key(session: Session, key_id: str) -> ApiKey:
    key = access.key(session, key_id)
    if key is None:
        raise NotFound(f"No key {key_id!r}.")
    return key


def _draw_secret(key: ApiKey) -> str:
    """A new secret of the key; the caller shows it, for it is kept nowhere."""
    secret = f"allo-{secrets.token_urlsafe(32)}"
    key.hash, key.prefix = _hash(secret), secret[:9]
    return secret


def _hash(secret: str) -> str:
    """A plain hash suffices: nobody guesses 256 random bits, so there is nothing to slow down."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
