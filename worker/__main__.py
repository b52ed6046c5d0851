"""`python -m worker`: one worker of this machine, with as many slots as the settings say."""

from service.footprint import one_heap
from service.logs import configure
from worker.app import app, settings


def main() -> None:
    """Run the worker until it is told to end. The node's name plays no part: its queue is what names it. What is
    written are events: without Celery's banner, and with warnings of the start among them."""
    one_heap()
    configure(settings.log_format, settings.log_level)
    app.start(
        ["--quiet", "worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    )


if __name__ == "__main__":
    main()
