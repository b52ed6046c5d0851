"""`allo completion`: a script by which the shell completes commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from service.cli import parser
from service.cli.commands import Commands, described

_EPILOG = """\
examples:
  allo completion bash > ~/.local/share/bash-completion/completions/allo
  allo completion zsh > "${fpath[1]}/_allo"
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    completion = described(
        commands,
        "completion",
        "print a script by which the shell completes `allo`",
        _EPILOG,
        "Print a script by which the shell completes commands and options.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=lambda args: _print(args.shell))


_PATHS = ("training", "validation", "corrections", "retention", "path", "base", "delta", "out")
"""Arguments that name files or folders, and are not read as such: a model to add may be one of the Hub."""


def _print(shell: str) -> int:
    import shtab  # here: no other command needs it

    whole = parser()
    for argument in _arguments(whole):
        if argument.type is Path or argument.dest in _PATHS:
            argument.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, shell))  # noqa: T201 - this is the command's answer
    return 0


def _arguments(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a command, and of all that it has."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _arguments(inner)
        else:
            yield action
