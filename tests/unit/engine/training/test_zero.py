"""What ZeRO is asked for where it cannot be: on one device, with moments in 8 bits, without DeepSpeed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from allo_engine.config import ForgetConfig, SftConfig, TrainingConfig
from allo_engine.report import Report, StageError
from allo_engine.training.choice import stage_of
from allo_engine.training.zero import Sharded
from tests.tiny import tiny_model
from tests.unit.engine.conftest import Lines


@pytest.mark.parametrize("settings", [{"zero": 3}, {"offload": True}])
def test_one_device_shares_out_nothing_and_says_so(
    model_folder: Path, report: Report, stream: Lines, settings: dict[str, int]
) -> None:
    assert stage_of(SftConfig(**settings), model_folder, report) == 0
    assert "raise devices" in stream.lines()[-1]["message"]


def test_a_masked_stage_on_one_device_shares_out_nothing_and_says_so(
    model_folder: Path, report: Report, stream: Lines
) -> None:
    assert stage_of(ForgetConfig(zero=3), model_folder, report) == 0
    assert "raise devices" in stream.lines()[-1]["message"]


@pytest.mark.parametrize("config", [SftConfig(), ForgetConfig(), ForgetConfig(zero=2, offload=True)])
def test_by_default_one_device_has_nothing_to_say(
    model_folder: Path, report: Report, stream: Lines, config: TrainingConfig
) -> None:
    """Nor under what is nothing to a masked stage: its moments and gradients are few."""
    assert stage_of(config, model_folder, report) == 0
    assert not stream.lines()


def test_moments_in_8_bits_are_not_shared_out() -> None:
    with pytest.raises(ValidationError, match="8 bits"):
        SftConfig(moments="8bit", zero=2)
    assert SftConfig(moments="8bit").zero == "auto"


def test_frozen_weights_are_shared_out_whatever_the_moments() -> None:
    assert ForgetConfig(moments="8bit", zero=3).zero == 3
    assert SftConfig(train="mask", moments="8bit", zero=3).zero == 3


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed here")
def test_without_deepspeed_it_is_said_what_to_install() -> None:
    model = tiny_model()
    with pytest.raises(StageError, match=r"pip install 'allo\[scale\]'"):
        Sharded(model, dict(model.named_parameters()), SftConfig(), 2)
