"""What `allo COMMAND --help` says: examples of every command, which the command line takes as they stand."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from service.cli import main, parser
from tests.pages import ROOT


def helps() -> dict[str, str]:
    """Every command's help."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command.format_help() for name, command in commands.choices.items()}


def examples(text: str) -> list[list[str]]:
    """The commands that stand in a help or on a page, without what is said beside them."""
    whole = text.replace("\\\n", "")
    lines = re.findall(r"^ {2,4}(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?allo (.*)", whole, re.MULTILINE)
    return [shlex.split(re.sub(r"(\S)   *(?!--)\S.*$", r"\1", line).partition(" > ")[0]) for line in lines]


def test_every_command_has_examples_and_takes_them() -> None:
    for name, text in helps().items():
        found = examples(text[text.index("\nexample") :])
        assert name in {example[0] for example in found}
        for example in found:
            parser().parse_args(example)


PAGES = [ROOT / "README.md", *ROOT.glob("service/**/*.md"), *ROOT.glob("allo_engine/*.md")]


def test_whatever_the_readme_and_the_pages_have_people_type_is_taken() -> None:
    typed = [example for page in PAGES for example in examples(page.read_text(encoding="utf-8"))]
    assert len(typed) >= 15
    for command in typed:
        whole = [word for given in command for word in (ANY if given == "…" else [given])]
        parser().parse_args(whole)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"`allo ([a-z]+)", text)) <= helps().keys()


ANY = ["train.jsonl", "--model", "tiny"]
"""What `…` stands for behind `allo submit`."""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("submitt train.jsonl --model tiny", "submit"),
        ("submit train.jsonl --model tiny --method supervise", "supervised"),
        ("export ftjob-1 ggfu model.gguf", "gguf"),
        ("export ftjob-1 gguf model.gguf --type q8", "q8_0"),
        ("webhooks tset whend-1", "test"),
    ],
)
def test_what_is_nearly_a_word_is_told_with_the_word(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(typed.split())
    assert capsys.readouterr().err.endswith(f"Did you mean {meant!r}?\n")


SILENT = {"up", "api", "demo", "completion"}
"""Those that serve, show a person around, or answer with a script."""


def test_every_command_that_tells_something_tells_it_to_programs_too() -> None:
    def takes_json(command: argparse.ArgumentParser) -> bool:
        """Itself, or each of its verbs."""
        verbs = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
        named = any("--json" in action.option_strings for action in command._actions)
        return named or (bool(verbs) and all(takes_json(verb) for verb in verbs[0].choices.values()))

    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert {name for name, command in commands.choices.items() if not takes_json(command)} == SILENT


@pytest.mark.parametrize("command", ["up", "api"])
@pytest.mark.parametrize("number", ["99999", "-1", "http"])
def test_what_is_no_port_is_refused(command: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, f"--port={number}"])
    assert "port" in capsys.readouterr().err.splitlines()[-1]


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
