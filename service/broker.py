"""The doorbell: it tells a worker of a stage to be claimed, and nothing else. The database owns the truth."""

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


def queue_of(queue: str, worker: str) -> str:
    """The queue that a worker listens to, and nobody else."""
    return f"{queue}.{worker}"


class BrokerDown(Exception):
    """The broker does not answer. Whoever rang does so again later: nothing is lost."""


class Broker(Protocol):
    """A way to reach a worker."""

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        """Asks the worker to claim the stage. Raises BrokerDown."""

    def forget(self, worker: str) -> None:
        """Drops what was said to a worker that is gone. Raises BrokerDown."""

    def ping(self) -> None:
        """Raises BrokerDown where the broker does not answer."""


class CeleryBroker:
    """Rings through Celery, by the task's name: the worker's code is not needed for it. Fulfils `Broker`.

    Each worker listens to a queue of its own, `<queue>.<worker>`.
    """

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

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        try:
            self._celery.send_task(TASK, args=[stage_id, epoch], queue=queue_of(self._queue, worker))
        except FAILURES as error:
            raise BrokerDown(str(error)) from error

    def forget(self, worker: str) -> None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(**ONE_TRY)
                queue = self._celery.amqp.queues[queue_of(self._queue, worker)](connection.default_channel)
                queue.declare()  # what a connection has not declared, it cannot delete
                queue.delete()
        except FAILURES as error:
            raise BrokerDown(str(error)) from error

    def ping(self) -> None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(**ONE_TRY)
        except FAILURES as error:
            raise BrokerDown(str(error)) from error
