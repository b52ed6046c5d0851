"""The doorbell, as far as it goes without anybody behind the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.broker import BrokerDown, CeleryBroker


def test_a_broker_that_is_not_there_is_down(tmp_path: Path) -> None:
    broker = CeleryBroker(f"redis+socket://{tmp_path / 'nobody.sock'}", "stages")
    with pytest.raises(BrokerDown):
        broker.ping()
    with pytest.raises(BrokerDown):
        broker.forget("worker")
    with pytest.raises(BrokerDown):
        broker.ring("worker", "stage-1", 0)
