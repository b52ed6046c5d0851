"""`allo completion`: its scripts, in the shells that they are for."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.cli import main
from tests.waiting import PATIENCE

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ["source '{folder}/_allo'"]),
    "zsh": (["zsh", "-f", "-i"], ["fpath=('{folder}' $fpath)", "autoload -Uz compinit", "compinit -u -D"]),
}
"""How each is begun as if a person typed, with no settings of theirs, and what takes the script."""


class Typing:
    """A shell behind a terminal of its own."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def seen(self, *words: str) -> bool:
        """Whether all of these come to stand there."""
        text = ""
        while not all(word in text for word in words):
            if not select.select([self._terminal], [], [], PATIENCE)[0]:
                return False
            text += os.read(self._terminal, 65_536).decode(errors="replace")
        return True


@contextmanager
def opened(shell: str, folder: Path) -> Iterator[Typing]:
    command, lines = SHELLS[shell]
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        typing = Typing(ours)
        for line in (*lines, "echo it is rea''dy"):
            typing.type(line.format(folder=folder) + "\n")
        assert typing.seen("it is ready")
        yield typing
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_values_and_paths(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "_allo").write_text(capsys.readouterr().out)
    (tmp_path / "problems.jsonl").touch()
    (tmp_path / "a-model").mkdir()
    with opened(shell, tmp_path) as typing:
        for typed, completed in (
            ("allo comp", ["compare", "completion"]),
            ("allo mod", ["models "]),
            ("allo models ", ["add", "list", "remove"]),
            ("allo submit --meth", ["--method "]),
            ("allo submit x --method ", ["supervised", "dpo"]),
            ("allo submit prob", ["problems.jsonl"]),
            ("allo submit x --validation prob", ["problems.jsonl"]),
            ("allo models add tiny a-m", ["a-model"]),
            ("allo export ftjob-1 ", ["gguf", "peft"]),
        ):
            typing.type(f"{typed}\t\t")
            assert typing.seen(*completed), typed
            typing.type("\x15")  # what stands there is taken away
