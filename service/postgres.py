"""PostgreSQL as we reach it: nobody waits for it without end, also where it has frozen or the network is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy.exc import InvalidatePoolError

from service.engines import Patience

_INTERVAL = 0.1
_GRACE_SECONDS = 1.0
"""What the server gets beyond its own time-outs: its own words, where it has any, are better."""


class Silent(psycopg.OperationalError):
    """The server may be there, and says nothing."""


class _Connection(psycopg.Connection[Any]):
    """Gives up on a server that says nothing: the time-outs that it should keep itself froze with it."""

    seconds: float | None = None

    def wait(self, gen: Any, interval: float = _INTERVAL, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.seconds)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise Silent(f"the database said nothing for {self.seconds} s") from None

    def ping(self, seconds: float) -> None:
        """Raises where the server is gone, and Silent where it says nothing for so long."""
        patient, self.seconds = self.seconds, seconds
        self.autocommit = True
        self.execute("")
        self.autocommit, self.seconds = False, patient


def connector(patience: Patience) -> Callable[..., Any]:
    """For SQLAlchemy's `do_connect`: opens a connection that is as patient as that, and no more."""
    wait = {"connect_timeout": max(2, round(patience.connect)), "tcp_user_timeout": round(patience.connect * 1000)}
    limits = {"statement_timeout": patience.statement, "lock_timeout": patience.lock}
    # Who is cut off or loses its power between two statements would hold its rows for hours: TCP finds out that late.
    limits["idle_in_transaction_session_timeout"] = 2 * patience.statement

    def connect(_dialect: Any, _record: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        connection = _Connection.connect(*arguments, **wait | options)
        connection.seconds = patience.statement + _GRACE_SECONDS
        for name, seconds in limits.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, str(round(seconds * 1000))))
        connection.commit()
        return connection

    return connect


def pinger(patience: Patience) -> Callable[..., None]:
    """For the pool's `checkout`: whether a connection that was opened earlier still leads to a server. One that is gone
    may be back, and all connections are opened anew; one that says nothing to this would say nothing to a new one."""

    def ping(connection: _Connection, _record: Any, _proxy: Any) -> None:
        try:
            connection.ping(patience.connect)
        except Silent:
            raise
        except psycopg.OperationalError as error:
            raise InvalidatePoolError from error

    return ping
