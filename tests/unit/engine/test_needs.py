"""What stages need, held against what `fit` says of the same model, and against sums by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from allo_engine.estimate.fit import fits, shape_by_config
from allo_engine.model.memory import CONTEXT_BYTES_ELSEWHERE, SPARE
from allo_engine.model.shape import Shape
from allo_engine.needs import Needs, needs_of
from allo_engine.pipeline import Data, plan
from tests.unit.engine.estimate.test_fit import GIB, LLAMA_8B, LLAMA_70B, QWEN_1_5B, QWEN_32B

DATA = Data("problems", validation="problems")


def shape_for(config: dict[str, Any], folder: Path) -> Shape:
    (folder / "config.json").write_text(json.dumps(config))
    return shape_by_config(folder)


def needs_for(
    shape: Shape | None, *, masks: bool = False, rewriter: Shape | None = None, **given: Any
) -> dict[str, Needs]:
    """Of an ALLO job with stage sft; what else is given is its shorthand, and `stages` are its stages' settings."""
    stages = {"sft": {}, **given.pop("stages", {})}
    planned = plan("allo", Data("problems", validation="problems", masks=masks), stages, given)
    written = [None if found is None else asdict(found) for found in (shape, rewriter or shape)]
    return needs_of(planned, *written)


@pytest.mark.parametrize("config", [QWEN_1_5B, LLAMA_8B, QWEN_32B], ids=["1.5B", "8B", "32B"])
@pytest.mark.parametrize(("train", "mode"), [("all", "all"), ("mask", "mask")])
def test_a_device_has_what_a_stage_needs_where_fit_says_that_it_fits(
    config: dict[str, Any], train: str, mode: str, tmp_path: Path
) -> None:
    shape = shape_for(config, tmp_path)
    needs = needs_for(shape, train=train)
    for gib in (24, 48, 80, 160, 640):
        found = {fit.stage: fit.fits for fit in fits(shape, gib * GIB, 0.05) if fit.train == mode}
        assert {stage: needs[stage].device_bytes <= gib * GIB for stage in found if stage in needs} == {
            stage: fit for stage, fit in found.items() if stage in needs
        }


def test_what_a_stage_holds_is_the_bulk_of_what_it_needs(tmp_path: Path) -> None:
    """8 B weights: 16 bytes each where all are trained; 2, and 20 for each of the mask's 3 %; 2 to read them; on a CPU
    each twice as wide."""
    shape = shape_for(LLAMA_8B, tmp_path)
    dense, masked = needs_for(shape), needs_for(shape, train="mask", mask_ratio=0.03)
    assert 16 < dense["warmup"].device_bytes / shape.weights < 20
    assert 2.6 < masked["improve"].device_bytes / shape.weights < 3.2
    assert 2 < dense["sample"].device_bytes / shape.weights < 2.4
    assert 4 < dense["sample"].cpu_bytes / shape.weights < 4.6
    assert (dense["warmup"].lighter, masked["sft"].lighter) == ("set train: mask", "")


def test_pairing_and_comparing_checkpoints_need_no_device_and_gradients_may_lie_on_the_host(tmp_path: Path) -> None:
    shape = shape_for(LLAMA_8B, tmp_path)
    by_update, by_gradient = needs_for(shape), needs_for(shape, train="mask")
    assert (by_update["pair"].devices, by_update["locate"].devices) == (0, 0)
    assert by_gradient["locate"].devices is None
    assert by_gradient["locate"].host_bytes > 4 * shape.weights


def test_a_rewriter_of_its_own_is_what_the_reward_model_needs(tmp_path: Path) -> None:
    large, small = shape_for(LLAMA_8B, tmp_path), shape_for(QWEN_1_5B, tmp_path)
    needs = needs_for(large, rewriter=small)
    assert needs["reward_model"].device_bytes == needs_for(small)["reward_model"].device_bytes
    assert needs["warmup"].device_bytes == needs_for(large)["warmup"].device_bytes


def test_settings_ask_for_packages_and_precision() -> None:
    needs = needs_for(None, moments="8bit", precision="bfloat16")
    assert needs["sft"].packages == ("bitsandbytes",)
    assert needs["evaluate"].packages == ()
    assert needs_for(None, harness={"tasks": ["arc"]})["evaluate"].packages == ("lm_eval",)
    assert {needs[stage].precision for stage in ("sft", "sample", "evaluate")} == {"bfloat16"}
    assert needs["sft"].device_bytes == 0, "nobody knows the model's shape"


def test_a_dense_stage_shares_out_among_devices_what_zero_lets_it(tmp_path: Path) -> None:
    """8 B weights, each of 24 bytes under ZeRO 3 (itself, its gradient, two moments, DeepSpeed's copies), of which
    under ZeRO 1 eight stay whole; and beside them what a row takes."""
    weights = (shape := shape_for(LLAMA_8B, tmp_path)).weights
    by = {zero: needs_for(shape, zero=zero) for zero in ("auto", 0, 1, 3)}
    spread = {zero: needs["sft"].spread_bytes / weights * SPARE for zero, needs in by.items()}
    assert spread == pytest.approx({"auto": 24, 0: 0, 1: 16, 3: 24}, abs=0.01)
    assert by[1]["sft"].each_bytes - by[3]["sft"].each_bytes > 5 * weights, "3 gathers a part at a time"
    assert {zero: needs["sft"].packages for zero, needs in by.items()} == {
        "auto": (), 0: (), 1: ("deepspeed",), 3: ("deepspeed",)
    }  # fmt: skip
    assert by[3]["sample"].packages == ()
    assert needs_for(shape, zero=3, devices=1)["sft"].packages == (), "alone there is nothing to share"


def test_a_masked_stage_shares_out_its_frozen_weights_where_zero_lets_it(tmp_path: Path) -> None:
    """70 B weights of two bytes each, beside twenty for each of a mask's 3 %: no device of 80 GiB holds them, eight
    do. Moments and gradients are few, so the lower stages of ZeRO share out nothing; and none takes a package."""
    shape = shape_for(LLAMA_70B, tmp_path)
    by = {zero: needs_for(shape, train="mask", mask_ratio=0.03, zero=zero)["sft"] for zero in ("auto", 0, 1, 2, 3)}
    spread = {zero: needs.spread_bytes / shape.weights * SPARE for zero, needs in by.items()}
    assert spread == pytest.approx({"auto": 2, 0: 0, 1: 0, 2: 0, 3: 2}, abs=0.01)
    assert {(needs.sharing, needs.packages) for needs in by.values()} == {("", ())}
    eighth = by["auto"].each_bytes + by["auto"].spread_bytes / 8
    assert eighth < 80 * GIB < by["auto"].device_bytes
    fit = {fit.train: fit.fits for fit in fits(shape, 80 * GIB, 0.03, devices=8) if fit.stage == "sft"}
    assert (fit["mask"], fit["mask, zero 3"]) == (False, True)


def test_what_is_offloaded_lies_on_the_host_once_however_many_share_it(tmp_path: Path) -> None:
    """Sixteen bytes of each of 8 B weights: two moments, and a copy of the weight and of its gradient."""
    shape = shape_for(LLAMA_8B, tmp_path)
    by = {
        (zero, offload): needs_for(shape, zero=zero, offload=offload)["sft"]
        for zero in (0, 3)
        for offload in (False, True)
    }
    spread = {key: needs.host_spread_bytes / shape.weights for key, needs in by.items()}
    assert spread == {(0, 0): 0, (0, 1): 0, (3, 0): 0, (3, 1): 16}
    assert by[3, 1].spread_bytes < by[3, 0].spread_bytes - 15 * shape.weights
    one_tensor = 4 * shape.largest
    assert all(one_tensor < needs.host_bytes < one_tensor + 2**30 for needs in by.values())


def test_vllm_asks_for_room_for_one_response_or_it_does_not_start(tmp_path: Path) -> None:
    """8 B weights in 16 bits, 4,096 tokens of 131,072 bytes each, and a pass over 2,048; nine tenths of what is free is
    its share. On a CPU twice as wide, beside a process that has imported it."""
    shape = shape_for(LLAMA_8B, tmp_path)
    how = {"max_prompt_tokens": 2048, "max_response_tokens": 2048, "decoding_batch": 1}
    ours, vllm = (needs_for(shape, stages={"sample": {**how, "backend": by}})["sample"] for by in ("auto", "vllm"))
    least = (2 * shape.weights + 4096 * 131_072) / 0.9
    assert 0 < vllm.device_bytes - CONTEXT_BYTES_ELSEWHERE - least < 0.5 * GIB
    assert 2 * least < vllm.cpu_bytes < 2 * least + 3 * GIB
    assert ours.packages == ()
    assert vllm.packages == ("vllm",)


def test_masks_of_another_job_are_taken_to_be_as_large_as_ours(tmp_path: Path) -> None:
    shape = shape_for(QWEN_1_5B, tmp_path)
    brought = needs_for(shape, masks=True, stages={"reward_model": {}})
    assert brought["improve"].device_bytes == needs_for(shape)["improve"].device_bytes


def test_a_shape_that_another_version_wrote_is_no_shape() -> None:
    planned = plan("supervised", DATA)
    assert needs_of(planned, {"weights": 1}, None) == needs_of(planned, None, None)


def test_needs_are_told_without_torch() -> None:
    code = "import sys, allo_engine.needs; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
