"""`allo merge` and `allo info`, each as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from allo_engine.checkpoints.__main__ import main as engine
from allo_engine.checkpoints.delta import write_delta
from allo_engine.checkpoints.folder import fingerprint
from service.cli import main

PLACES, TRAINED = np.array([3, 40]), np.array([1.001, -2.5], dtype=np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of two weights, and a delta of it beside it that changes one."""
    (tmp_path / "base").mkdir()
    save_file({"w": torch.zeros(50), "v": torch.ones(2, 2)}, tmp_path / "base" / "model.safetensors")
    write_delta({"w": (PLACES, TRAINED)}, tmp_path / "base", tmp_path / "delta")
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_writes_the_base_with_the_delta_in_the_type_that_is_asked_for(base: Path, dtype: torch.dtype) -> None:
    out = base.with_name("out")
    asked = ["--dtype", "bfloat16"] if dtype == torch.bfloat16 else []
    assert main(["merge", str(base), str(base.with_name("delta")), str(out), *asked]) == 0
    expected = torch.zeros(50)
    expected[torch.from_numpy(PLACES)] = torch.from_numpy(TRAINED)
    merged = load_file(out / "model.safetensors")
    assert merged["w"].dtype == dtype
    assert torch.equal(merged["w"], expected.to(dtype))
    assert torch.equal(merged["v"], torch.ones(2, 2, dtype=dtype))


def test_info_says_what_a_delta_holds(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (base.with_name("delta") / "delta.safetensors").stat().st_size
    assert main(["info", str(base.with_name("delta")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == size
    assert main(["info", str(base.with_name("delta"))]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told == {
        "weights": "1",
        "entries": "2",
        "bytes": f"{size} ({size / 2:.2f} an entry)",
        "base": fingerprint(base),
    }


def test_what_is_wrong_is_said_in_one_line(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the engine, here, and by the command, which asks it in a process of its own."""
    delta, missing = str(base.with_name("delta")), str(base.with_name("nowhere"))
    other = base.with_name("other")
    other.mkdir()
    save_file({"w": torch.ones(50)}, other / "model.safetensors")
    for command, reason in [
        (["info", str(base)], "no whole sparse checkpoint"),
        (["merge", missing, delta, missing], "nowhere holds no *.safetensors"),
        (["merge", str(base), missing, missing], "no whole sparse checkpoint"),
        (["merge", str(base), delta, str(base)], "name another folder"),
        (["merge", str(other), delta, missing], "another base model"),
    ]:
        asked = [*command, "float32"] if command[0] == "merge" else command
        assert engine(asked) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert reason in said
    assert not Path(missing).exists()
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines() == [f"error: {said}"]


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("merge", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"  allo {command} ./" in capsys.readouterr().out
