"""The environment that `make test-scale` builds: both libraries run beside our torch and transformers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.scale.alone import alone
from tests.tiny import save_tiny, tiny_model

PROMPT = [0, 2, 40, 41, 42, 3]


def _continued_by_vllm(folder: Path) -> list[int]:
    from vllm import LLM, SamplingParams

    engine = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=64)
    request = engine.generate(
        {"prompt_token_ids": PROMPT}, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    )
    return list(request[0].outputs[0].token_ids)


def _continued_by_transformers(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    for _ in range(16):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


def test_vllm_generates_what_transformers_does(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", hidden=128)  # heads of 32: vLLM has no smaller ones on a CPU
    assert alone(_continued_by_vllm, folder) == _continued_by_transformers(folder)


def _weights_after_a_step_of_deepspeed(address: str) -> dict[str, torch.Tensor]:
    import deepspeed

    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    model = tiny_model()
    settings = {
        "train_batch_size": 1,
        "gradient_clipping": 0.0,  # 1.0 unless it is told
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=settings
    )
    engine.backward(_loss(engine))
    engine.step()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _loss(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([PROMPT])
    return model(input_ids=ids, labels=ids).loss


def test_deepspeed_takes_the_step_that_torch_does(tmp_path: Path) -> None:
    stepped = alone(_weights_after_a_step_of_deepspeed, (tmp_path / "rendezvous").as_uri())
    model = tiny_model()
    _loss(model).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, weight in model.named_parameters():
        assert torch.allclose(stepped[name], weight, atol=1e-6), name
