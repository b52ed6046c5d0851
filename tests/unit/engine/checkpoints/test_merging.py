"""A merged file that nobody stores: the same bytes from any offset on, whatever they are made of."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from allo_engine.checkpoints.delta import FILE, Values, describe, merge, read_delta, write_delta
from allo_engine.checkpoints.merging import Merged
from allo_engine.checkpoints.recipe import DESCRIBED
from allo_engine.checkpoints.writing import narrowed
from allo_engine.report import StageError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SIZE = 300_000


def base_of(folder: Path) -> Path:
    """Weights of every dtype, one of them no numbers, one large enough for several blocks of places."""
    random = torch.Generator().manual_seed(0)
    weights = {
        "large": torch.randn(SIZE, generator=random).bfloat16(),
        "half": torch.randn(3, 7, generator=random).half(),
        "single": torch.randn(11, 13, generator=random),
        "untouched": torch.randn(5, generator=random),
        "ids": torch.arange(9),
        "scalar": torch.tensor(2.5),
    }
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    return folder


def changes() -> Values:
    random = np.random.default_rng(0)
    places = {
        "large": np.flatnonzero(random.random(SIZE) < 0.4),
        "half": np.array([0, 20]),
        "single": np.array([142]),
        "scalar": np.array([0]),
    }
    return {name: (at, random.standard_normal(len(at)).astype(np.float32)) for name, at in places.items()}


class Held:
    """A file's bytes in memory, as a Source."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.size = len(self._data)

    def read(self, start: int, count: int) -> bytes:
        return self._data[start : start + count]


class Made:
    """A base and its delta, and the whole file that they make in each dtype."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base, self.delta = base_of(root / "base"), root / "delta"
        write_delta(changes(), self.base, self.delta)
        self.whole = {dtype: self.merged(dtype).read(0, self.merged(dtype).size) for dtype in DTYPES}

    def merged(self, dtype: str) -> Merged:
        return Merged(Held(self.base / "model.safetensors"), Held(self.delta / FILE), dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_is_the_base_with_the_deltas_values_rounded_once(made: Made, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(made.whole[dtype])
    found, stored = load_file(tmp_path / "model.safetensors"), load_file(made.base / "model.safetensors")
    assert found.keys() == stored.keys()
    assert torch.equal(found.pop("ids"), stored["ids"])
    for name, weight in found.items():
        expected = stored[name].float().reshape(-1)
        places, values = changes().get(name, (np.zeros(0, dtype=int), np.zeros(0, dtype=np.float32)))
        expected[torch.from_numpy(places)] = torch.from_numpy(values)
        assert torch.equal(weight, expected.to(DTYPES[dtype]).reshape(stored[name].shape)), name


@settings(max_examples=60)
@given(st.sampled_from(list(DTYPES)), st.data())
def test_any_part_is_that_part_of_the_whole(made: Made, dtype: str, data: st.DataObject) -> None:
    whole, merged = made.whole[dtype], made.merged(dtype)
    assert merged.size == len(whole)
    edges = st.sampled_from([0, 7, 8, len(whole) - SIZE // 2, len(whole)]) | st.integers(0, len(whole))
    for _ in range(3):  # one after the other, forwards and backwards, from what was decoded for the last
        start, end = sorted((data.draw(edges), data.draw(edges)))
        assert b"".join(merged.stream(start, end)) == whole[start:end]


def test_what_is_described_is_what_merging_writes(made: Made, tmp_path: Path) -> None:
    describe(made.base, made.delta, tmp_path / "described")
    merge(made.base, made.delta, tmp_path / "merged")
    (file,) = json.loads((tmp_path / "described" / DESCRIBED).read_text())
    written = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert written == made.whole["F32"]
    assert (file["bytes"], file["sha256"]) == (len(written), hashlib.sha256(written).hexdigest())
    assert file["base"] == hashlib.sha256((made.base / "model.safetensors").read_bytes()).hexdigest()
    assert file["delta"] == hashlib.sha256((made.delta / FILE).read_bytes()).hexdigest()


def test_what_was_merged_is_a_base_again(made: Made) -> None:
    recast = Merged(made.merged("F32"), None, "BF16")
    assert recast.read(0, recast.size) == made.whole["BF16"]


def test_a_flipped_bit_of_the_delta_gives_an_error_and_no_other_weights(made: Made) -> None:
    values = read_delta(made.delta, made.base)
    data = bytearray((made.delta / FILE).read_bytes())
    data[-100] ^= 1
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(data)
        merged = Merged(Held(made.base / "model.safetensors"), Held(Path(folder) / FILE), "F32")
        with pytest.raises(StageError) as refused:
            merged.read(0, merged.size)
    assert refused.value.code == "bad_delta"
    assert values.keys() == changes().keys()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_numbers_are_rounded_as_torch_rounds_them(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32)
    for dtype, kind in DTYPES.items():
        expected = torch.from_numpy(values).to(kind).view(torch.uint8).numpy()
        assert narrowed(values, dtype).tobytes() == expected.tobytes()


def test_what_is_no_number_stays_none() -> None:
    values = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], dtype=np.uint32).view(np.float32)
    rounded = torch.frombuffer(bytearray(narrowed(values, "BF16").tobytes()), dtype=torch.bfloat16)
    assert torch.isnan(rounded).all()


def test_torch_is_not_loaded() -> None:
    code = "import sys, allo_engine.checkpoints.merging; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
