"""Which of the engine's code a stage runs, told from the text alone. That it tells of all that a run loads is tested
beside the runs: see stages/test_stages.py."""

from __future__ import annotations

import ast
import io
import os
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from allo_engine.config import CONFIGS, TrainingConfig
from allo_engine.configs import config_of
from allo_engine.source import ROOT, Files, Module, Source, asides, code_version, replaced
from tests.waiting import until

TEXTS = {path: path.read_text() for path in sorted(ROOT.rglob("*.py"))}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return codes(ROOT)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT, tmp_path / "allo_engine", ignore=shutil.ignore_patterns("__pycache__"))


def codes(root: Path) -> dict[str, str]:
    source = Source(root)
    return {stage: source.stage_code(stage) for stage in CONFIGS}


def changed(before: dict[str, str], root: Path) -> set[str]:
    after = codes(root)
    return {stage for stage in CONFIGS if before[stage] != after[stage]}


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_comments_and_docstrings_change_no_stage(copy: Path, before: dict[str, str]) -> None:
    for path, text in TEXTS.items():
        (copy / path.relative_to(ROOT)).write_text(f"{_said_otherwise(text)}\n\n  # said\n'''and said'''\n")
    assert changed(before, copy) == set()


def _said_otherwise(text: str) -> str:
    """Every comment and docstring replaced, from the last to the first."""
    for start, end in reversed(list(asides(text))):
        text = text[:start] + ("# else" if text[start] == "#" else '"""Else.\n\n"""  # noqa: D') + text[end:]
    return text


def test_a_constant_changes_the_stages_that_import_it_and_no_other(copy: Path, before: dict[str, str]) -> None:
    importing = {stage for stage in CONFIGS if "allo_engine.masking.selection" in Source(copy).closure(stage)}
    assert {"locate"} <= importing < set(CONFIGS)
    add(copy / "masking" / "selection.py", "\n_ANOTHER = 1\n")
    assert changed(before, copy) == importing


def test_a_stage_s_own_module_is_its_own_alone(copy: Path, before: dict[str, str]) -> None:
    for stage in CONFIGS:
        module = copy / "stages" / f"{stage}.py"
        text = module.read_text()
        module.write_text(f"{text}\n_ANOTHER = 1\n")
        assert changed(before, copy) == {stage}
        module.write_text(text)


def test_a_setting_that_is_added_to_a_stage_is_no_other_stage_s(copy: Path, before: dict[str, str]) -> None:
    for stage, config in CONFIGS.items():
        assert config is config_of(stage)
        module = copy / "configs" / f"{stage}.py"
        text = module.read_text()
        module.write_text(f"{text}\n    another: int = 1\n")
        assert changed(before, copy) == {stage}
        module.write_text(text)


def test_a_setting_that_is_added_to_all_that_train_is_of_no_other_stage(copy: Path, before: dict[str, str]) -> None:
    trained = {stage for stage, config in CONFIGS.items() if issubclass(config, TrainingConfig)}
    add(copy / "bases_trained.py", "\n_ANOTHER = 1\n")
    assert changed(before, copy) == trained


def test_that_files_were_replaced_is_seen(copy: Path) -> None:
    assert not replaced()
    assert not replaced(code_version())
    assert replaced("whoever started this process knows of other files")
    files = Files(copy)
    assert files.version() == code_version()
    add(copy / "estimate" / "job.py", "# changes no result")
    assert files.version() == code_version()
    add(copy / "stages" / "sft.py", "# a word")
    assert files.version() != code_version(), "what is loaded may be told from what lies there by any byte"


@pytest.mark.parametrize("settled", [False, True])
def test_a_file_is_seen_to_change_in_whatever_way_it_does(copy: Path, settled: bool) -> None:
    """Where the file has been as it is for long, and where it was written just before it was read."""
    files, module = Files(copy, settled=0 if settled else 3600 * 10**9), copy / "ranks.py"
    text, seen = module.read_text(), {files.version()}
    times = module.stat()

    def written() -> None:
        module.write_text(text.replace("rank", "knar", 1))

    def as_long_and_as_old() -> None:
        module.write_text(text.replace("rank", "karn", 1))
        os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))

    def another_in_its_place() -> None:
        shutil.copy2(copy / "report.py", copy / "aside")
        (copy / "aside").rename(module)

    def gone() -> None:
        module.unlink()

    def one_more() -> None:
        (copy / "another.py").touch()

    for change in (written, as_long_and_as_old, another_in_its_place, gone, one_more):
        wait_until_time_has_passed(copy)
        change()
        seen.add(files.version())
    assert len(seen) == 6


def wait_until_time_has_passed(folder: Path) -> None:
    """By the clock of a file system."""
    one, other = folder / "before", folder / "after"
    one.touch()
    until(lambda: other.touch() or other.stat().st_ctime_ns > one.stat().st_ctime_ns)


@pytest.mark.parametrize("room", ["estimate", "exports", "answering", "needs.py", "pipeline.py"])
def test_what_computes_no_result_is_of_no_stage(room: str) -> None:
    module = f"allo_engine.{room.removesuffix('.py')}"
    source = Source(ROOT)
    assert not [name for stage in CONFIGS for name in source.closure(stage) if f"{name}.".startswith(f"{module}.")]


def test_other_interpreters_that_a_stage_starts_are_of_it() -> None:
    source = Source(ROOT)
    assert all("allo_engine.model.templating" in source.closure(stage) for stage in CONFIGS)
    assert "allo_engine.sampling.vllm_engine" in source.closure("sample") & source.closure("evaluate")


def test_only_comments_and_statements_that_are_a_string_are_left_out() -> None:
    for path, text in TEXTS.items():
        assert list(asides(text)) == sorted([*_comments(text), *_docstrings(text)]), path


def test_every_import_that_a_parser_finds_is_found() -> None:
    for path, text in TEXTS.items():
        assert set(_imports(text)) <= Module.read(text).names, path


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1\n", "x = 2\n"),
        ("x = 'a # b'\n", "x = 'a # c'\n"),
        ('x = """a\n\n  b"""\n', 'x = """a\n  b"""\n'),  # lines of a string count
        ('x = """a  \nb"""\n', 'x = """a\nb"""\n'),
        ('f(\n    """a"""\n)\n', 'f(\n    """b"""\n)\n'),  # an argument on a line of its own
        ('x = {\n    "a":\n    "b"\n}\n', 'x = {\n    "a":\n    "c"\n}\n'),
        ('x = \\\n"a"\n', 'x = \\\n"b"\n'),
        ('"a".run()\n', '"b".run()\n'),
        ('f"{g()}"\n', 'f"{h()}"\n'),
        ("if x:\n    a()\nb()\n", "if x:\n    a()\n    b()\n"),
    ],
)
def test_all_that_does_anything_counts(text: str, other: str) -> None:
    compile(text, "text", "exec")
    assert Module.read(text).sha256 != Module.read(other).sha256


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1\n", "# why\nx = 1  # how\n\n\n"),
        ('def f():\n    """One."""\n    return 1\n', "def f():\n    return 1\n"),
        ('x = 1\n"""What it is."""\n', "x = 1\n"),
        ('r"""\\said"""\nx = "#"\n', 'x = "#"\n'),
    ],
)
def test_what_does_nothing_counts_for_nothing(text: str, other: str) -> None:
    assert Module.read(text).sha256 == Module.read(other).sha256


def _comments(text: str) -> Iterator[tuple[int, int]]:
    lines = _line_starts(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield tuple(lines[row - 1] + column for row, column in (token.start, token.end))


def _docstrings(text: str) -> Iterator[tuple[int, int]]:
    lines = _line_starts(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            rows = text.splitlines(keepends=True)
            start, end = (
                lines[row - 1] + len(rows[row - 1].encode()[:column].decode())  # columns of a tree are bytes
                for row, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
            )
            yield start, end


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names if name.name.startswith("allo_engine"))
            case ast.ImportFrom(module, names, level):
                assert not level, "imports are absolute here"
                if module and module.startswith("allo_engine"):
                    yield from (module, *(f"{module}.{name.name}" for name in names))
