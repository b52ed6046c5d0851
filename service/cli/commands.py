"""A command of `allo`: its help, and what those have that speak to a running service."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from service.cli.connection import add_connection

Commands = argparse._SubParsersAction  # argparse gives it no public name


class Parser(argparse.ArgumentParser):
    """One that names what is nearly the command, the form or the method that was typed."""

    def error(self, message: str) -> NoReturn:
        from allo_engine.checks import did_you_mean  # here: it loads every stage's settings

        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        super().error(message + (did_you_mean(wrong[1], re.findall(r"[^', ]+", wrong[2])) if wrong else ""))


def whole(**options: Any) -> argparse.ArgumentParser:
    """The parser of the whole command line, from which its commands have theirs."""
    return Parser(**options)


def port(text: str) -> int:
    """A port's number, of an argument."""
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{number} is no port: they go from 0 to 65535")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option of every command that tells something."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def described(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, epilog: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A command with its help, whose examples stand as they are written."""
    return commands.add_parser(
        name,
        help=summary,
        description=description or sentence(summary),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def sentence(summary: str) -> str:
    """A summary as a sentence of its own."""
    return f"{summary[0].upper()}{summary[1:]}."


def command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command with its help, the options of a connection, and --json."""
    parser = described(commands, name, summary, epilog)
    add_json(parser)
    add_connection(parser)
    parser.set_defaults(run=run)
    return parser


def verbs(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, epilog: str, description: str | None = None
) -> Commands[argparse.ArgumentParser]:
    """A command that has verbs, of which `list` is the one without a word."""
    parser = described(commands, name, summary, epilog, description)
    found = parser.add_subparsers(metavar="[VERB]")

    def listed(_: argparse.Namespace) -> int:
        args = found.choices["list"].parse_args([])
        return int(args.run(args))

    parser.set_defaults(run=listed)
    return found
