"""What `allo COMMAND --help` says: examples of every command, which the command line takes as they stand."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from service.cli import main, parser


def helps() -> dict[str, str]:
    """Every command's help."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command.format_help() for name, command in commands.choices.items()}


def examples(text: str) -> list[list[str]]:
    """The commands that stand in a help, without what is said beside them."""
    whole = text.replace("\\\n", "")
    lines = re.findall(r"^  (?:[A-Z_]+=\S+ )*allo (.*)", whole, re.MULTILINE)
    return [shlex.split(re.sub(r"(\S)   *(?!--)\S.*$", r"\1", line).partition(" > ")[0]) for line in lines]


def test_every_command_has_examples_and_takes_them() -> None:
    for name, text in helps().items():
        found = examples(text[text.index("\nexample") :])
        assert name in {example[0] for example in found}
        for example in found:
            parser().parse_args(example)


def test_without_a_verb_a_command_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("files", "keys", "models", "webhooks"):
        assert main([name]) == main([name, "list"]) == 1
        first, second = capsys.readouterr().err.split("error: ")[1:]
        assert first == second


def test_no_line_of_an_example_is_wider_than_a_page() -> None:
    for text in [*helps().values(), parser().format_help()]:
        assert max(map(len, text.splitlines())) <= 120
