"""Of the contents of the store, whosever they are."""

from __future__ import annotations

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class Scrub(Base):
    """How far the reading of all that is stored has come: one row. `place` is the sha256 up to which contents have been
    read since `began_at`, in the order of their names; `rounds` counts those before."""

    __tablename__ = "scrubs"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(String(64))
    began_at: Mapped[int] = mapped_column(BigInteger)
    looked_at: Mapped[int] = mapped_column(BigInteger)
    contents: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    rounds: Mapped[int] = mapped_column(BigInteger)


class Damage(Base):
    """A content that was found damaged and set aside, by its sha256; until it is stored again."""

    __tablename__ = "damages"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    found_at: Mapped[int] = mapped_column(BigInteger)


class Marker(Base):
    """What the service's own store has and no other does: a content of chance. One row."""

    __tablename__ = "markers"

    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))


class Compatibility(Base):
    """Whom the tables bear: one row. A process whose newest migration is older than `oldest` may not start on them."""

    __tablename__ = "compatibility"

    oldest: Mapped[str] = mapped_column(String(32), primary_key=True)
