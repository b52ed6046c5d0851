"""`allo api`: the web process alone, for a machine where broker, database and worker run elsewhere."""

from __future__ import annotations

import argparse

from service.cli.commands import Commands, described, port

_EPILOG = """\
examples:
  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… allo api --host 0.0.0.0 --port 8000
  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… python -m worker       its worker, on any machine
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = described(
        commands,
        "api",
        "start the web process alone",
        _EPILOG,
        "Start the web process alone. `allo up` starts it together with all that it needs.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (8000)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    from service.server import serve  # here, for the other commands need neither
    from service.settings import Settings

    serve(Settings.from_environment(), args.host, args.port)
    return 0
