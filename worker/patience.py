"""A store that is away costs a stage time, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from service.storage.store import Store, StoreAway


def patient(store: Store, wait: Callable[[StoreAway], None]) -> Store:
    """The store, each of whose calls is made again after `wait`, while the store is away; `wait` may raise instead."""
    return cast(Store, _Patient(store, wait))


class _Patient:
    def __init__(self, store: Store, wait: Callable[[StoreAway], None]) -> None:
        self._store, self._wait = store, wait

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return (lambda *given, **named: self._made(lambda: found(*given, **named))) if callable(found) else found

    def _made(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except StoreAway as error:
                self._wait(error)
