"""The doorbell: it says that a stage is there to be claimed, and nothing else. The database owns the truth."""

from __future__ import annotations

from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

TASK = "worker.tasks.run_stage"
TIMEOUT_SECONDS = 5
ONE_TRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""How kombu connects: it would wait between many tries, and whoever rings has better to do."""

FAILURES = (OperationalError, OSError)
"""What a broken connection raises, depending on the moment."""


class BrokerDown(Exception):
    """The broker does not answer. Whoever rang does so again later: nothing is lost."""


class Broker(Protocol):
    """A way to reach some worker."""

    def ring(self, stage_id: str, epoch: int) -> None:
        """Asks any worker to claim the stage. Raises BrokerDown."""

    def ping(self) -> None:
        """Raises BrokerDown where the broker does not answer."""


class CeleryBroker:
    """Rings through Celery, by the task's name: the worker's code is not needed for it. Fulfils `Broker`."""

    def __init__(self, url: str, queue: str) -> None:
        self._queue = queue
        self._celery = Celery(broker=url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            task_publish_retry=False,  # the dispatcher itself rings again
            broker_transport_options={
                "socket_timeout": TIMEOUT_SECONDS,
                "socket_connect_timeout": TIMEOUT_SECONDS,
                "retry_on_timeout": False,
                **ONE_TRY,
            },
        )

    def ring(self, stage_id: str, epoch: int) -> None:
        try:
            self._celery.send_task(TASK, args=[stage_id, epoch], queue=self._queue)
        except FAILURES as error:
            raise BrokerDown(str(error)) from error

    def ping(self) -> None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(**ONE_TRY)
        except FAILURES as error:
            raise BrokerDown(str(error)) from error
