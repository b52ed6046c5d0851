"""`allo demo --prepare`: what a first job needs, where there is neither a model nor a file at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allo_engine.checkpoints.convert import FILES
from service.cli import main


def test_prepare_leaves_a_model_and_two_files_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "allo-demo" / "model"
    model.mkdir(parents=True)
    for name in FILES:  # as if it had been made before: that takes its time
        (model / name).touch()
    assert main(["demo", "--prepare"]) == 0
    for name in ("train", "held-out"):
        lines = (tmp_path / "allo-demo" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(line).keys() == {"problem", "solution", "answer"} for line in lines)
    assert not (tmp_path / "allo-demo" / "allo.db").exists()
    said = capsys.readouterr().out
    assert "allo models add smollm2 allo-demo/model" in said
    assert "allo submit allo-demo/train.jsonl" in said


def test_a_place_that_cannot_be_written_to_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "allo-demo").touch()
    assert main(["demo", "--prepare"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"error: File exists: {tmp_path / 'allo-demo'}"
