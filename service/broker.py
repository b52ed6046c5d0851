"""The doorbell: it tells a worker of a stage to be claimed, and nothing else. The database owns the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from service.brokers import for_celery, for_redis, told

if TYPE_CHECKING:
    from celery import Celery

TASK = "worker.tasks.run_stage"
TIMEOUT_SECONDS = 5
ONE_TRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""How kombu connects: it would wait between many tries, and whoever rings has better to do."""


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

    Each worker listens to a queue of its own, `<queue>.<worker>`. Celery and the client are loaded when they are first
    used: the web process, which only asks whether the broker is there, never loads Celery.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        with _told():
            self._celery.send_task(TASK, args=[stage_id, epoch], queue=queue_of(self._queue, worker))

    def forget(self, worker: str) -> None:
        with _told(), self._celery.connection_for_write() as connection:
            connection.ensure_connection(**ONE_TRY)
            queue = self._celery.amqp.queues[queue_of(self._queue, worker)](connection.default_channel)
            queue.declare()  # what a connection has not declared, it cannot delete
            queue.delete()

    def ping(self) -> None:
        from redis import Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        seconds = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
        try:
            with Redis.from_url(for_redis(self._url), retry=Retry(NoBackoff(), 0), **seconds) as client:
                client.ping()
        except (RedisError, OSError) as error:
            raise BrokerDown(told(error)) from error

    @cached_property
    def _celery(self) -> Celery:
        from celery import Celery

        celery = Celery(broker=for_celery(self._url), set_as_current=False)
        celery.conf.update(
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
        return celery


@contextmanager
def _told() -> Iterator[None]:
    """Raises BrokerDown for what a broken connection raises, depending on the moment."""
    from kombu.exceptions import OperationalError

    try:
        yield
    except (OperationalError, OSError) as error:
        raise BrokerDown(told(error)) from error
