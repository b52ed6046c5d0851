"""`python -m worker`: one worker of this machine, with as many slots as the settings say."""

import sys

from worker.procfs import take_space


def main() -> None:
    """Run the worker until it is told to end. The node's name plays no part: its queue is what names it. What is
    written are events: without Celery's banner, and with warnings of the start among them."""
    take_space()
    from service.footprint import one_heap  # here and below: behind what may begin anew
    from service.logs import configure

    one_heap()
    from worker.app import app, settings

    configure(settings.log_format, settings.log_level)
    # As Celery's own command line would, which loads every other command, too, and what shells complete them with.
    worker = app.Worker(loglevel="INFO", quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True)
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
