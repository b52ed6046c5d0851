"""API keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.db import Database
from service.jobs.access.keys import create_key, find_key, list_keys, revoke_key, rotate_key
from service.jobs.errors import Conflict, InvalidRequest, NotFound
from service.migrating import migrate


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def database(tmp_path: Path, now: list[float]) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    migrate(url)
    database = Database(url, clock=lambda: now[0])
    yield database
    database.close()


def test_a_key_is_found_by_its_secret_alone(database: Database) -> None:
    made = create_key(database, "acme", ("read", "submit"))
    found = find_key(database, made.secret)
    assert found is not None
    assert (found.id, found.owner, found.scopes) == (made.id, "acme", ["read", "submit"])
    assert find_key(database, made.secret + "x") is None
    assert find_key(database, "") is None
    assert find_key(database, "\udcff") is None


def test_the_secret_is_kept_nowhere(database: Database, tmp_path: Path) -> None:
    secret = create_key(database, "acme").secret
    database.close()
    for path in tmp_path.iterdir():
        assert secret.encode() not in path.read_bytes()


def test_a_key_ends_when_it_expires_or_is_revoked(database: Database, now: list[float]) -> None:
    short, other = create_key(database, "acme", expires_at=1060), create_key(database, "acme")
    assert find_key(database, short.secret) is not None
    now[0] = 1060
    assert find_key(database, short.secret) is None
    revoke_key(database, other.id)
    assert find_key(database, other.secret) is None
    assert [key.id for key in list_keys(database)] == [short.id, other.id]
    with pytest.raises(NotFound):
        revoke_key(database, "key-none")


def test_a_rotated_key_has_another_secret_alone(database: Database) -> None:
    made = create_key(database, "acme", ("read",))
    again = rotate_key(database, made.id)
    assert again.id == made.id
    found = find_key(database, again.secret)
    assert found is not None
    assert (found.owner, found.scopes) == ("acme", ["read"])
    assert find_key(database, made.secret) is None
    revoke_key(database, made.id)
    with pytest.raises(Conflict):
        rotate_key(database, made.id)
    with pytest.raises(NotFound):
        rotate_key(database, "key-none")


@pytest.mark.parametrize("expires_at", [0, 999, 1000])
def test_a_key_that_would_have_expired_is_not_made(database: Database, expires_at: int) -> None:
    with pytest.raises(InvalidRequest, match="future"):
        create_key(database, "acme", expires_at=expires_at)


def test_owners_and_scopes_are_checked(database: Database) -> None:
    for owner in ("", "A", "a:b", "a/b", "x" * 64):
        with pytest.raises(InvalidRequest):
            create_key(database, owner)
    with pytest.raises(InvalidRequest):
        create_key(database, "acme", ())
    with pytest.raises(InvalidRequest):
        create_key(database, "acme", ("root",))  # type: ignore[arg-type]
