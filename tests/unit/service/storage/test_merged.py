"""Contents that are made when they are read, kept by their sha256 like any blob."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from allo_engine.checkpoints.delta import describe, write_delta
from allo_engine.checkpoints.recipe import DESCRIBED, Recipe
from service.storage import Blob, BlobMissing, Corrupt, LocalStore, MergingStore


@dataclass(frozen=True)
class Case:
    store: MergingStore
    base: Blob
    delta: Blob
    merged: Blob


@pytest.fixture
def case(tmp_path: Path) -> Case:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.arange(1000.0)}, base / "model.safetensors")
    write_delta({"w": (np.array([3, 700]), np.float32([0.5, -2.0]))}, base, tmp_path / "delta")
    describe(base, tmp_path / "delta", tmp_path / "checkpoint")
    (file,) = json.loads((tmp_path / "checkpoint" / DESCRIBED).read_text())
    store = MergingStore(LocalStore(tmp_path / "store"))
    blobs = store.put(base / "model.safetensors"), store.put(tmp_path / "delta" / "delta.safetensors")
    merged = Blob(file["sha256"], file["bytes"])
    store.derive(merged, Recipe.of(file))
    return Case(store, *blobs, merged)


def test_a_made_content_is_opened_fetched_and_named_like_any_other(case: Case, tmp_path: Path) -> None:
    store, name = case.store, case.merged.sha256
    whole = b"".join(store.open(name))
    assert hashlib.sha256(whole).hexdigest() == name
    assert (store.size(name), store.exists(name)) == (len(whole), True)
    assert load(whole)["w"][[2, 3, 700]].tolist() == [2.0, 0.5, -2.0]
    assert b"".join(store.open(name, 100, 2000)) == whole[100:2000]
    store.fetch(name, tmp_path / "fetched" / "model.safetensors")
    assert (tmp_path / "fetched" / "model.safetensors").read_bytes() == whole
    assert case.delta.size < len(whole)
    blobs = {path.name for path in (tmp_path / "store" / "blobs").glob("*/*")}
    assert blobs & {name, case.base.sha256, case.delta.sha256} == {case.base.sha256, case.delta.sha256}


def test_another_process_finds_it(case: Case, tmp_path: Path) -> None:
    assert MergingStore(LocalStore(tmp_path / "store")).exists(case.merged.sha256)


def test_what_others_are_made_of_stays_until_they_go(case: Case) -> None:
    store, parts = case.store, (case.base.sha256, case.delta.sha256)
    for part in parts:
        store.delete(part)
    assert store.exists(case.merged.sha256)
    store.delete(case.merged.sha256)
    assert not store.exists(case.merged.sha256)
    with pytest.raises(BlobMissing):
        store.open(case.merged.sha256)
    for part in parts:
        store.delete(part)
        assert not store.exists(part)


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["base", "delta"])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_part_never_ends_as_if_it_were_whole(case: Case, tmp_path: Path, part: str, how: str) -> None:
    (path,) = (tmp_path / "store" / "blobs").glob(f"*/{getattr(case, part).sha256}")
    data = path.read_bytes()
    damage(path, data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corrupt):
        b"".join(case.store.open(case.merged.sha256))
    with pytest.raises(Corrupt):
        b"".join(case.store.open(case.merged.sha256, 1))


def test_a_stored_file_comes_in_another_dtype(case: Case) -> None:
    for name, expected in ((case.base.sha256, 700.0), (case.merged.sha256, -2.0)):
        made = case.store.recast(name, "BF16")
        whole = b"".join(made.open(0, made.size))
        assert len(whole) == made.size
        assert load(whole)["w"].dtype == torch.bfloat16
        assert load(whole)["w"][700].item() == expected
        assert b"".join(made.open(77, 500)) == whole[77:500]


def test_a_part_that_is_missing_is_missed_at_once(case: Case, tmp_path: Path) -> None:
    (path,) = (tmp_path / "store" / "blobs").glob(f"*/{case.delta.sha256}")
    path.unlink()
    assert not case.store.exists(case.merged.sha256)
    with pytest.raises(BlobMissing):
        case.store.open(case.merged.sha256)
