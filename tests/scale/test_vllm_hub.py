"""vLLM fetches an aligned model straight from the service, by its name there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.integration.service.hub import serving

VLLM = """
import json, sys
from vllm import LLM, SamplingParams

engine = LLM(model=sys.argv[1], revision=sys.argv[2], dtype="float32", enforce_eager=True, max_model_len=64, seed=0)
prompt = {"prompt_token_ids": [0, 20, 30, 40]}
found = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)
print(json.dumps(list(found[0].outputs[0].token_ids)))
"""


def test_vllm_loads_a_revision_of_a_job_and_answers_as_transformers_does(tmp_path: Path) -> None:
    with serving(tmp_path, hidden=128) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(tmp_path / "hf"),
        }
        del environment["HF_HUB_OFFLINE"]
        command = [sys.executable, "-c", VLLM, hub.repository, "sft"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        model = AutoModelForCausalLM.from_pretrained(hub.models["sft"])
    ids = torch.tensor([[0, 20, 30, 40]])
    wanted = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, 4:].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
