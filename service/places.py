"""Where the database and the artifact store are, as the settings take it: a URL of another kind is refused at the start
of every process."""

from __future__ import annotations

from urllib.parse import urlsplit

_DATABASES = {"sqlite", "postgresql", "postgres", "postgresql+psycopg"}


def database(url: str) -> str:
    """The URL of a database; empty: the data folder's. Raises ValueError, whose words never hold the password."""
    scheme, separator, _ = url.partition("://")
    if url and (scheme not in _DATABASES or not separator):
        raise ValueError("must be postgresql://user:password@host:5432/name or sqlite:////folder/allo.db")
    return url


def store(url: str) -> str:
    """The URL of an artifact store; empty: the data folder's. Raises ValueError."""
    parts = urlsplit(url)
    named = {"": not url, "file": parts.path and not parts.netloc, "s3": parts.netloc}
    if not named.get(parts.scheme):
        raise ValueError("must be file:///folder, with three slashes, or s3://bucket/prefix")
    return url
