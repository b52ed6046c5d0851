"""A command of `allo` that speaks to a running service: what all of them have."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from service.cli.connection import add_connection

Commands = argparse._SubParsersAction  # argparse gives it no public name


def command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command with its help, the options of a connection, and --json."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    add_connection(parser)
    parser.set_defaults(run=run)
    return parser


def verbs(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> Commands[argparse.ArgumentParser]:
    """A command that has verbs."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(required=True, metavar="VERB")
