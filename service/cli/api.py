"""`allo api`: the web process alone, for a machine where broker, database and worker run elsewhere."""

from __future__ import annotations

import argparse
import socket

_EPILOG = """\
examples:
  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… allo api --host 0.0.0.0 --port 8000
  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… python -m worker       its worker, on any machine
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "api",
        help="start the web process alone",
        description="Start the web process alone. `allo up` starts it together with all that it needs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # a listening socket that `allo up` hands down
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    import uvicorn  # here, for the other commands need neither

    from service.app import from_environment

    config = uvicorn.Config(
        from_environment(), host=args.host, port=args.port, timeout_graceful_shutdown=5, server_header=False
    )
    sockets = None if args.fd is None else [socket.socket(fileno=args.fd)]
    uvicorn.Server(config).run(sockets)
    return 0
