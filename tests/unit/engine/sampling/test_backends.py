"""Which backend answers, where vLLM is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from allo_engine import sampling
from allo_engine.config import EvaluateConfig, SampleConfig
from allo_engine.report import Report, StageError
from allo_engine.sampling import Request, Response, TransformersSampler
from allo_engine.sampling.canary import canaries, disagreement, greedy_logps
from allo_engine.sampling.vllm import child_device
from allo_engine.stages import sample
from tests.tiny import tiny_model
from tests.unit.engine.pipeline import write_problems

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


@without_vllm
def test_a_backend_that_is_missing_is_told_before_anything_is_loaded(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    inputs = {"model": model_folder, "problems": write_problems(tmp_path / "data")}
    with pytest.raises(StageError, match="no vLLM") as caught:
        sample.run(SampleConfig(backend="vllm"), inputs, tmp_path / "out", tmp_path / "work", report)
    assert caught.value.code == "backend_missing"


@without_vllm
def test_auto_decodes_by_transformers_where_vllm_is_missing(model_folder: Path) -> None:
    assert SampleConfig().backend == EvaluateConfig().backend == "auto"
    with sampling.open(model_folder, backend="auto") as sampler:
        assert isinstance(sampler, TransformersSampler)


def test_a_streams_seed_names_seed_number_and_sample() -> None:
    seeds = {
        Request(number, [0], seed, 4).stream_seed(sample)
        for number in range(9)
        for seed in range(9)
        for sample in range(9)
    }
    assert len(seeds) == 9**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Request(1, [0, 5], 2, 40).stream_seed(3) == Request(1, [0], 2, 4, (3,)).stream_seed(3)


PROMPTS = [[0, *range(10, 10 + length)] for length in (9, 2, 30, 5, 4, 12)]


def test_canaries_are_the_shortest_prompts() -> None:
    found = canaries([Request(number, prompt, 0, 9 * number + 1, (4, 5)) for number, prompt in enumerate(PROMPTS)])
    assert [(one.number, one.max_tokens, one.samples) for one in found] == [
        (1, 10, (0,)),
        (4, 16, (0,)),
        (3, 16, (0,)),
        (0, 1, (0,)),
    ]


def likeliest(logps_TV: torch.Tensor) -> Response:
    best, ids = logps_TV.max(-1)
    return Response(ids.tolist(), best.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_agrees_with_itself_and_with_no_other(dtype: torch.dtype) -> None:
    request = Request(0, PROMPTS[0], 0, 12)
    expected, other = (greedy_logps(tiny_model(seed).to(dtype), request) for seed in (0, 1))
    with torch.inference_mode():
        whole = [*request.prompt, *likeliest(expected).ids]
        plain = (
            tiny_model()
            .to(dtype)(torch.tensor([whole]))
            .logits[0, len(request.prompt) - 1 : -1]
            .float()
            .log_softmax(-1)
        )
    assert torch.allclose(expected, plain, atol=1e-4 if dtype == torch.float32 else 0.3)
    assert disagreement(expected, likeliest(expected), dtype) is None
    told = disagreement(expected, likeliest(other), dtype)
    assert told
    assert told.startswith("token 1 is ")


def test_a_tie_is_no_disagreement_and_ends_the_comparison() -> None:
    """log 0.40 = -0.916, log 0.398 = -0.921: within a hundredth of a nat, and within half a nat of log 0.25."""
    expected = torch.tensor([[0.40, 0.398, 0.202], [0.9, 0.05, 0.05]]).log()
    tied = Response([1, 2], [-0.921, -2.996])
    assert disagreement(expected, tied, torch.float32) is None
    expected = torch.tensor([[0.40, 0.35, 0.25], [0.9, 0.05, 0.05]]).log()
    near = Response([2, 0], [-1.386, -0.105])
    told = disagreement(expected, near, torch.float32)
    assert told == "token 1 is 2 with a log-probability of -1.386, where the model has -1.386 for it and -0.916 for 0"
    assert disagreement(expected, near, torch.bfloat16) is None


@pytest.mark.parametrize("logp", [-0.5, float("nan")])
def test_the_right_token_with_a_wrong_log_probability_is_a_disagreement(logp: float) -> None:
    expected = torch.tensor([[0.9, 0.1]]).log()
    assert disagreement(expected, Response([0], [-0.105]), torch.float32) is None
    assert disagreement(expected, Response([0], [logp]), torch.float32)


@pytest.mark.parametrize(
    ("visible", "number", "seen"),
    [(None, 1, "1"), ("", 0, "0"), ("3,5", 1, "5"), ("GPU-5f3c, GPU-77aa", 1, "GPU-77aa")],
)
def test_the_engine_of_a_rank_sees_the_ranks_own_device_alone(visible: str | None, number: int, seen: str) -> None:
    assert child_device(visible, number) == seen
