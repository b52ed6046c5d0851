"""`python -m worker`: one worker of this machine, with as many slots as the settings say."""

from worker.app import app


def main() -> None:
    """Run the worker until it is told to end. The node's name plays no part: its queue is what names it."""
    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    main()
