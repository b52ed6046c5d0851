"""`allo completion`: a script by which the shell completes commands and options."""

from __future__ import annotations

import argparse

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


def _print(shell: str) -> int:
    import shtab  # here: no other command needs it

    print(shtab.complete(parser(), shell))  # noqa: T201 - this is the command's answer
    return 0
