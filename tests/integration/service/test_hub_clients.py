"""The unmodified clients of the Hugging Face Hub, over a real connection: this service is their HF_ENDPOINT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.cli import main
from service.db import Database
from service.jobs.access import audit
from service.jobs.access.keys import create_key
from service.jobs.registry.models import read_model
from service.jobs.repository import Page
from service.jobs.submission import NewJob
from tests import asking
from tests.integration.service.domain import OWNER
from tests.integration.service.hub import Hub, listening, run, serving


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def same_files(folder: Path, source: Path) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in source.iterdir())


def test_a_snapshot_is_every_file_and_the_card(hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.endpoint, "token": hub.token, "cache_dir": tmp_path}
    folder = Path(snapshot_download(hub.repository, **where))
    assert same_files(folder, hub.models["improve"])
    assert {path.name for path in folder.iterdir()} == {path.name for path in hub.models["improve"].iterdir()} | {
        "README.md"
    }
    assert folder.name == hub.api().model_info(hub.repository).sha


def test_every_revision_is_a_checkpoint_by_its_name_and_by_its_commit(hub: Hub, tmp_path: Path) -> None:
    branches = {branch.name: branch.target_commit for branch in hub.api().list_repo_refs(hub.repository).branches}
    assert set(branches) == {"main", "sft", "warmup", "forgotten"}
    assert len(set(branches.values())) == 4
    for revision, stage in {"main": "improve", "sft": "sft", "warmup": "warmup", "forgotten": "forget"}.items():
        expected = (hub.models[stage] / "model.safetensors").read_bytes()
        for name in (revision, branches[revision]):
            path = hf_hub_download(
                hub.repository,
                "model.safetensors",
                revision=name,
                endpoint=hub.endpoint,
                token=hub.token,
                cache_dir=tmp_path,
            )
            assert Path(path).read_bytes() == expected
            assert Path(path).parent.name == branches[revision]


class Breaking:
    """The app, whose first answer with the large file breaks off in its midst; `asked` are the ranges of it that were
    asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked: list[bytes | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"].endswith("/large.bin"):
            self.asked.append(dict(scope["headers"]).get(b"range"))
            send = self._breaking(send) if len(self.asked) == 1 else send
        await self._app(scope, receive, send)

    def _breaking(self, send: Send) -> Send:
        sent = 0

        async def until_it_breaks(message: Message) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent > LARGE - 2**20:
                raise ConnectionResetError("the cable")
            await send(message)

        return until_it_breaks


LARGE = 12 * 2**20
"""Bytes. The client keeps what it has in pieces of ten MiB."""


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    content = bytes(range(256)) * (LARGE // 256)
    job = hub.domain.submit(NewJob("tiny", "file-train", method="supervised", seed=6)).job.id
    run(hub.domain, {"sft": [("large.bin", hub.domain.store.put_stream([content]))]})
    app = Breaking(hub.app)
    with listening(app) as endpoint:
        where = {"endpoint": endpoint, "token": hub.token, "cache_dir": tmp_path}
        path = hf_hub_download(f"jobs/{job}", "large.bin", **where)
    assert Path(path).read_bytes() == content
    assert app.asked == [None, b"bytes=10485760-"]


def test_what_the_client_asks_of_a_repository_is_answered(hub: Hub) -> None:
    api = hub.api()
    info = api.model_info(hub.repository, files_metadata=True)
    assert (info.id, info.private, info.library_name) == (hub.repository, True, "transformers")
    sizes = {path.name: path.stat().st_size for path in hub.models["improve"].iterdir()}
    assert {file.rfilename: file.size for file in info.siblings or [] if file.rfilename != "README.md"} == sizes
    assert api.file_exists(hub.repository, "config.json", revision="sft")
    assert not api.file_exists(hub.repository, "adapter_config.json")
    assert not api.repo_exists("jobs/ftjob-none")
    assert set(api.list_repo_files(hub.repository)) == {*sizes, "README.md"}
    weights = api.get_safetensors_metadata(hub.repository)
    assert sum(weights.parameter_count.values()) == sum(
        tensor.parameter_count for tensor in weights.files_metadata["model.safetensors"].tensors.values()
    )


def test_files_are_told_of_by_their_paths(hub: Hub) -> None:
    size = (hub.models["sft"] / "config.json").stat().st_size
    found = hub.api().get_paths_info(hub.repository, ["config.json", "no.json"], revision="sft")
    assert [(file.path, getattr(file, "size", None)) for file in found] == [("config.json", size)]
    assert audit.read_page(hub.domain.database, Page(100))[0] == [], "asking is a POST, and changes nothing"
    with pytest.raises(RevisionNotFoundError):
        hub.api().get_paths_info(hub.repository, "config.json", revision="none")


def test_the_file_system_of_the_hub_lists_a_revision_and_reads_a_part_of_its_weights(hub: Hub) -> None:
    files = HfFileSystem(endpoint=hub.endpoint, token=hub.token, use_listings_cache=False)
    weights = (hub.models["improve"] / "model.safetensors").read_bytes()
    path = f"{hub.repository}/model.safetensors"
    assert path in files.ls(hub.repository, detail=False)
    assert files.info(path)["size"] == len(weights)
    assert files.cat_file(path, start=8, end=64) == weights[8:64]
    assert not files.exists(f"{hub.repository}/adapter_config.json")


def test_what_is_absent_is_told_apart(hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.endpoint, "token": hub.token, "cache_dir": tmp_path}
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("jobs/ftjob-none", **where)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("other/model", **where)
    with pytest.raises(RevisionNotFoundError, match="it has: main, sft, warmup, forgotten"):
        hub.api().model_info(hub.repository, revision="refs/pr/1")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(hub.repository, "adapter_config.json", **where)


def test_another_owners_repository_is_absent_and_no_key_opens_nothing(hub: Hub) -> None:
    with pytest.raises(RepositoryNotFoundError) as theirs:
        HfApi(endpoint=hub.endpoint, token=hub.stranger).model_info(hub.repository)
    assert theirs.value.response.status_code == 404
    for path in (f"/{hub.repository}/resolve/main/config.json", f"/api/models/{hub.repository}/tree/main"):
        assert asking.get(hub.endpoint + path, headers={"authorization": f"Bearer {hub.stranger}"}).status_code == 404
    with pytest.raises(HfHubHTTPError) as unknown:
        HfApi(endpoint=hub.endpoint, token="hf_wrong").model_info(hub.repository)
    assert unknown.value.response.status_code == 401


def test_a_part_of_a_file_says_of_which_commit_it_is(hub: Hub) -> None:
    expected = (hub.models["improve"] / "model.safetensors").read_bytes()
    part = hub.get(f"/{hub.repository}/resolve/main/model.safetensors", range="bytes=5000-5003")
    assert (part.status_code, part.content) == (206, expected[5000:5004])
    assert part.headers["x-repo-commit"] == hub.api().model_info(hub.repository).sha


def test_the_card_says_what_the_model_is_and_how_good(hub: Hub) -> None:
    text = hub.get(f"/{hub.repository}/resolve/main/README.md").text
    front, body = text.removeprefix("---\n").split("---\n", 1)
    assert 'base_model: "tiny"' in front
    assert "| aligned | 50.0 % | 40.0 % – 60.0 % |" in body
    assert "- `improve`: `beta = 0.3`" in body
    assert "- `sft`: `n_epochs = 2`" in body
    assert "- `forget`\n" in body
    assert hub.domain.data.sha256 in body
    assert f'from_pretrained("{hub.repository}")' in body
    assert 'revision="sft"' in hub.get(f"/{hub.repository}/resolve/sft/README.md").text


def test_a_model_is_registered_by_its_hub_id_where_the_operator_allows_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "add", "copy", hub.repository, "--revision", "sft", "--data-dir", str(tmp_path / "data")]
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(command) == 1
    assert "ALLO_HUB_URL" in capsys.readouterr().err
    monkeypatch.setenv("ALLO_HUB_URL", hub.endpoint)
    assert main(command) == 0, capsys.readouterr().err
    database = Database(f"sqlite:///{tmp_path / 'data' / 'allo.db'}")
    model = read_model(database, "anyone", "copy")
    database.close()
    commit = hub.api().model_info(hub.repository, revision="sft").sha
    assert (model.origin or {})["source"] == f"{hub.repository}@{commit}"
    assert {file["path"] for file in model.files} == {path.name for path in hub.models["sft"].iterdir()}


def test_a_path_that_looks_like_markup_is_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", "tiny", "[/x]", "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: [/x] is no folder."


def test_a_deleted_model_is_no_revision_any_more(hub: Hub) -> None:
    new = NewJob("tiny", "file-train", method="supervised", seed=5)
    job = hub.domain.submit(new).job.id
    with pytest.raises(RevisionNotFoundError, match="none yet"):
        hub.api().model_info(f"jobs/{job}")
    run(hub.domain, {})
    assert hub.api().model_info(f"jobs/{job}").sha
    name = hub.domain.view(job).job.fine_tuned_model
    admin = create_key(hub.domain.database, OWNER).secret
    url = f"{hub.endpoint}/v1/models/{name}"
    assert asking.delete(url, headers={"authorization": f"Bearer {admin}"}).status_code == 200
    with pytest.raises(RevisionNotFoundError, match="none yet"):
        hub.api().model_info(f"jobs/{job}")
