"""A job's model in the forms that other programs read, from a real server: streamed, or made once by a process."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from allo_engine.checkpoints.delta import describe, merge, write_delta
from allo_engine.checkpoints.recipe import DESCRIBED, Recipe
from service.app import create_app
from service.jobs.access.keys import create_key
from service.jobs.registry.models import register_model
from service.jobs.running import attempts, dispatch
from service.jobs.submission import NewJob
from service.migrating import migrate
from service.settings import Settings
from service.storage.store import Blob
from tests import asking
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import OWNER, Domain, furnish
from tests.integration.service.hub import listening
from tests.rot import lies_there
from tests.unit.engine.test_exports import save
from tests.waiting import until


@dataclass(frozen=True)
class Served:
    """A service whose only job has one stage of ALLO's: a base, and what improving made of it."""

    url: str
    key: str
    stranger: str
    model: str
    base: Path
    aligned: Path
    domain: Domain

    def get(self, path: str, key: str | None = None, **headers: str) -> httpx.Response:
        url = f"{self.url}/v1/models/{self.model}/{path}"
        return asking.get(url, headers={"authorization": f"Bearer {key or self.key}", **headers})

    def made(self, path: str) -> httpx.Response:
        """Asked for until it is there."""
        answers: list[httpx.Response] = []

        def there() -> bool:
            answers.append(self.get(path))
            return answers[-1].status_code != 202

        until(there)
        return answers[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("exports")
    settings = Settings(data_dir=root / "data", min_free_bytes=0)
    (root / "data").mkdir()
    migrate(settings.database)
    app = create_app(settings, SilentBroker())
    domain = furnish(app.state.context.database, app.state.context.store)
    base = save("llama", root / "base")
    register_model(domain.database, domain.store, "llama", base, probe=lambda _: {"packs": True, "reason": ""})
    write_delta(changes(base), base, root / "delta")
    describe(base, root / "delta", root / "described")
    merge(base, root / "delta", root / "aligned")
    job = domain.submit(NewJob("llama", "file-train", method="allo", suffix="mine")).job.id
    run(domain, root)
    name = domain.view(job).job.fine_tuned_model
    assert name is not None
    keys = [create_key(domain.database, owner, ("read",)).secret for owner in (OWNER, "stranger")]
    with listening(app) as url:
        yield Served(url, *keys, name, base, root / "aligned", domain)
    app.state.context.close()


def changes(base: Path) -> dict[str, Any]:
    """A step of rank one on a matrix of each layer."""
    weights, values = load_file(base / "model.safetensors"), {}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        step = 0.01 * torch.outer(torch.linspace(-1, 1, 96), torch.linspace(1, 2, 64))
        values[name] = np.arange(96 * 64), (weights[name] + step).reshape(-1).numpy()
    return values


def run(domain: Domain, root: Path) -> None:
    """Every stage to its end; `improve` leaves what it would: a delta, and a checkpoint that is described."""
    (file,) = json.loads((root / "described" / DESCRIBED).read_text())
    delta = domain.store.put(root / "delta" / "delta.safetensors")
    domain.store.derive(Blob(file["sha256"], file["bytes"]), Recipe.of(file))
    improved = [("delta", "delta.safetensors", delta.sha256, delta.size)]
    improved.append(("checkpoint", file["path"], file["sha256"], file["bytes"]))
    for path in sorted((root / "described").iterdir()):
        if path.name != DESCRIBED:
            blob = domain.store.put(path)
            improved.append(("checkpoint", path.name, blob.sha256, blob.size))
    while rings := dispatch.ready_stages(domain.database):
        assert dispatch.place(domain.database, domain.store, rings[0].stage_id, rings[0].epoch, "worker")
        claim = attempts.claim(domain.database, rings[0].stage_id, rings[0].epoch, "worker")
        assert claim is not None
        if claim.name == "improve":
            name = (claim.stage_id, claim.epoch)
            assert attempts.finish(domain.database, domain.store, *name, improved, {})
        else:
            assert domain.finish(claim)


def test_the_merged_model_is_downloaded_whole_and_in_parts_and_takes_no_room(served: Served) -> None:
    expected = (served.aligned / "model.safetensors").read_bytes()
    whole = served.get("files/model.safetensors")
    assert whole.content == expected
    assert whole.headers["etag"] == f'"{hashlib.sha256(expected).hexdigest()}"'
    part = served.get("files/model.safetensors", range="bytes=70000-70999")
    assert (part.status_code, part.content) == (206, expected[70000:71000])
    assert not lies_there(served.domain.store, hashlib.sha256(expected).hexdigest())


def test_a_tar_of_the_model_in_another_dtype_loads_and_its_parts_are_parts_of_it(
    served: Served, tmp_path: Path
) -> None:
    whole = served.get("export/safetensors?dtype=bfloat16")
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert served.get("export/safetensors?dtype=bfloat16").headers["etag"] == whole.headers["etag"]
    assert served.get("export/safetensors").headers["etag"] != whole.headers["etag"]
    for start, end in ((0, 600), (511, 513), (1000, 90_000), (len(whole.content) - 1025, len(whole.content))):
        part = served.get("export/safetensors?dtype=bfloat16", range=f"bytes={start}-{end - 1}")
        assert part.content == whole.content[start:end]
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    merged = load_file(served.aligned / "model.safetensors")
    assert all(
        torch.equal(weight, merged[name].bfloat16())
        for name, weight in load_file(tmp_path / "model.safetensors").items()
    )
    assert AutoTokenizer.from_pretrained(tmp_path)("sky")["input_ids"]


def test_one_file_comes_in_another_dtype(served: Served) -> None:
    weights = load(served.get("files/model.safetensors?dtype=float16").content)
    merged = load_file(served.aligned / "model.safetensors")
    assert all(torch.equal(weight, merged[name].half()) for name, weight in weights.items())
    assert served.get("files/config.json?dtype=float16").json()["dtype"] == "float16"
    assert served.get("files/model.safetensors?dtype=int8").status_code == 422


def test_the_delta_merges_into_the_base_again(served: Served, tmp_path: Path) -> None:
    (tmp_path / "delta").mkdir()
    (tmp_path / "delta" / "delta.safetensors").write_bytes(served.get("export/delta").content)
    merge(served.base, tmp_path / "delta", tmp_path / "merged")
    expected = (served.aligned / "model.safetensors").read_bytes()
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == expected


def test_a_gguf_is_made_once_and_its_error_stated(served: Served, tmp_path: Path) -> None:
    first = served.get("export/gguf?type=q8_0")
    assert first.status_code == 202
    assert first.json()["status"] in ("queued", "running")
    assert first.headers["retry-after"]
    made = served.made("export/gguf?type=q8_0")
    assert made.status_code == 200, made.text
    assert made.content[:4] == b"GGUF"
    modelfile = served.get("export/gguf?type=q8_0&file=Modelfile").text
    assert modelfile.startswith("FROM ./model.gguf\n")
    assert served.get("export/gguf?type=q8_0", range="bytes=0-3").content == b"GGUF"
    model = asking.get(f"{served.url}/v1/models/{served.model}", headers={"authorization": f"Bearer {served.key}"})
    (told,) = [made for made in model.json()["exports"] if made["format"] == "gguf"]
    assert told["status"] == "ready"
    assert told["options"] == {"type": "q8_0"}
    assert 0 < told["figures"]["logits"]["mean_abs"] < told["figures"]["logits"]["max_abs"]


def test_what_cannot_be_exported_says_why(served: Served) -> None:
    headers = {"authorization": f"Bearer {served.key}"}
    for name, format, message in (
        ("llama", "delta", "no sparse delta"),
        ("llama", "peft", "no base to adapt"),
    ):
        refused = asking.get(f"{served.url}/v1/models/{name}/export/{format}", headers=headers)
        assert refused.status_code == 422
        assert message in refused.json()["error"]["message"]
    for form, message in (
        ("ggfu", "Did you mean 'gguf'? There are: safetensors, delta, gguf, peft."),
        ("onnx", "'onnx'"),
    ):
        assert served.get(f"export/{form}").status_code == 404
        assert message in served.get(f"export/{form}").json()["error"]["message"]
    assert served.get("export/gguf?type=q4").status_code == 422
    assert served.get("export/gguf", key=served.stranger).status_code == 404
