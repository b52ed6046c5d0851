"""Registering a model: what is taken, and everything that is not."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from allo_engine.model.shape import shape_of
from service.db import Database
from service.jobs.errors import Conflict, InvalidRequest
from service.jobs.registry import models
from service.jobs.registry.models import read_model
from service.jobs.tables import Model
from service.migrating import migrate
from service.storage import Store, open_store
from tests.tiny import save_tiny


def safetensors(values: bytes = b"\0" * 8) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(values)]}}).encode()
    return struct.pack("<Q", len(header)) + header + values


def tensors(**offsets: list[object]) -> bytes:
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in offsets.items()}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


PACKED = {"packs": True, "reason": ""}


def register_model(database: Database, store: Store, name: str, folder: Path) -> Model:
    """Of files that are no real model: what a probe would say is given."""
    return models.register_model(database, store, name, folder, probe=lambda _: PACKED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "notes.md").write_text("not taken")
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri())


def test_a_model_is_copied_and_everyone_can_read_it(database: Database, store: Store, folder: Path) -> None:
    register_model(database, store, "acme/tiny", folder)
    model = read_model(database, "anyone", "acme/tiny")
    assert [file["path"] for file in model.files] == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert b"".join(store.open(model.files[2]["sha256"])) == safetensors()


def test_the_same_files_again_change_nothing_and_other_files_are_a_conflict(
    database: Database, store: Store, folder: Path
) -> None:
    first = register_model(database, store, "tiny", folder)
    assert register_model(database, store, "tiny", folder).created_at == first.created_at
    (folder / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(Conflict):
        register_model(database, store, "tiny", folder)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../tiny",
        "a/../b",
        "/tiny",
        "a//b",
        "a/b/c",
        "https://x/y",
        "ft:a:b:c",
        "a b",
        "a\0",
        "files",
        "x/files",
        "x/export",
    ],
)
def test_names_that_are_not_names_are_refused(database: Database, store: Store, folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        register_model(database, store, name, folder)
    assert refused.value.param == "name"


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "must hold config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled"),
        (write("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'), "auto_map"),
        (write("tokenizer_config.json", '{"auto_map": {}}'), "auto_map"),
        (write("config.json", "[]"), "must hold an object"),
        (write("config.json", "\x00"), "not JSON"),
        (write("config.json", "[" * 5000), "not JSON"),
        (write("config.json", '{"text_config": {"layers": [{"auto_map": {"AutoModel": "x.Y"}}]}}'), "auto_map"),
        (write("model.safetensors", b"pickle"), "not a whole safetensors file"),
        (write("model.safetensors", struct.pack("<Q", 2) + b"[]"), "not a whole safetensors file"),
        (write("model.safetensors", safetensors()[:-1]), "not a whole safetensors file"),
        (write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "not a whole safetensors file"),
        (write("model.safetensors", tensors(w=["0", "8"])), "not a whole safetensors file"),
        (write("model.safetensors", tensors(v=[0, 8], w=[0, 8])), "not a whole safetensors file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (write("model.safetensors.index.json", '{"weight_map": {"w": "../other.safetensors"}}'), "must map"),
        (write("model.safetensors.index.json", '{"weight_map": {"w": 3}}'), "must map"),
        (write("model.safetensors.index.json", "[]"), "must map"),
    ],
)
def test_what_could_run_code_or_is_not_whole_is_refused(
    database: Database, store: Store, folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(InvalidRequest, match=message):
        register_model(database, store, "tiny", folder)


def test_a_link_out_of_the_folder_is_refused(database: Database, store: Store, folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder.parent / "secret.json")
    with pytest.raises(InvalidRequest, match="leads out of the folder"):
        register_model(database, store, "tiny", folder)


def in_the_cache(folder: Path) -> Path:
    """The folder as the Hub's cache has it: links in a snapshot, the files themselves in blobs."""
    repository = folder.parent / "models--acme--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(folder.iterdir()):
        path.rename(repository / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_taken(database: Database, store: Store, folder: Path) -> None:
    register_model(database, store, "tiny", in_the_cache(folder))
    names = [file["path"] for file in read_model(database, "anyone", "tiny").files]
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("target", ["../../../secret.json", "../other/config.json", "/etc/hostname"])
def test_a_snapshot_whose_link_leaves_its_repository_is_refused(
    database: Database, store: Store, folder: Path, target: str
) -> None:
    (folder.parent / "secret.json").write_text("{}")
    snapshot = in_the_cache(folder)
    (snapshot.parent / "other").mkdir()
    (snapshot.parent / "other" / "config.json").write_text("{}")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(target)
    with pytest.raises(InvalidRequest, match="leads out of the folder"):
        register_model(database, store, "tiny", snapshot)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, None),
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen\n---\n"}, "qwen"),
        ({"README.md": "license: in the text"}, None),
        ({"LICENSE": "\n  Apache License\n  Version 2.0"}, "Apache License"),
        ({"config.json": '{"model_type": "llama", "license": "mit"}', "LICENSE": "MIT License"}, "mit"),
        ({"LICENSE": "x" * 10_000}, "x" * 100),
    ],
)
def test_how_a_model_is_licensed_is_remembered(
    database: Database, store: Store, folder: Path, files: dict[str, str], licence: str | None
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    model = register_model(database, store, "tiny", folder)
    assert (model.origin or {})["license"] == licence


def test_a_folder_that_is_not_there_is_refused(database: Database, store: Store, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="is no folder"):
        register_model(database, store, "tiny", folder / "none")


def test_the_verdict_is_kept_with_the_model_and_renewed(database: Database, store: Store, folder: Path) -> None:
    register_model(database, store, "tiny", folder)
    assert read_model(database, "anyone", "tiny").verdict == PACKED
    alone = {"packs": False, "reason": "It is recurrent."}
    models.register_model(database, store, "tiny", folder, probe=lambda _: alone)
    assert read_model(database, "anyone", "tiny").verdict == alone


def test_what_the_engine_cannot_train_is_refused_and_nothing_is_kept(
    database: Database, store: Store, folder: Path
) -> None:
    (folder / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(InvalidRequest, match="encoder-decoder") as caught:
        models.register_model(database, store, "tiny", folder)
    assert caught.value.param == "path"
    assert models.read_models(database, "anyone") == []


def test_the_engine_is_asked_in_another_process(tmp_path: Path) -> None:
    code = """
import json, sys, service.jobs.registry.verdicts as v, pathlib
print(json.dumps([v.probed(pathlib.Path(sys.argv[1])), "torch" in sys.modules]))
"""
    folder = save_tiny(tmp_path / "tiny")
    shown = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    verdict, loaded = json.loads(shown)
    assert verdict == {**PACKED, "shape": asdict(shape_of(folder))}
    assert not loaded
