"""The engine on a CUDA device computes what it computes on a CPU, in float32, and runs whole in bfloat16."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from allo_engine.config import SftConfig
from allo_engine.model.loading import device, load_model
from allo_engine.model.logps import token_logps
from allo_engine.model.sequences import Group, build_row, singles
from allo_engine.pipeline import Data
from allo_engine.report import Report, Stopped
from allo_engine.sampling import Request, Settings, TransformersSampler
from allo_engine.stages import sft
from tests.architectures import save_random
from tests.tiny import save_tiny, tiny_tokenizer
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import run_job, write_problems
from tests.unit.engine.stages.test_stages import SETTINGS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32: FlexAttention's kernels have none below 16."""
    return save_tiny(tmp_path_factory.mktemp("model"), hidden=128)


def sequences() -> list[Group]:
    """Problems of several responses, which share their beginnings."""
    random = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(5, 261, (count,), generator=random).tolist()  # noqa: E731
    return [singles(key, draw(40), [draw(length) for length in (7, 30, 19, 64)]) for key in range(4)]


def plain_logps(model: Any, groups: list[Group]) -> list[torch.Tensor]:
    """logπ of each response's tokens by plain transformers, a sequence at a time."""
    found = []
    for group in groups:
        for ids in group.responses.values():
            logits = model(torch.tensor([[*group.prompt, *ids]], device=model.device)).logits[0].float()
            targets = torch.tensor(ids, device=model.device)[:, None]
            found.append(logits.log_softmax(-1)[len(group.prompt) - 1 : -1].gather(1, targets)[:, 0])
    return found


def packed_logps(model: Any, groups: list[Group]) -> list[torch.Tensor]:
    row = build_row(groups, model.device)
    return list(row.split(token_logps(model, row)).values())


WIDE = {"hidden_size": 128, "head_dim": 32}
KINDS = {
    "Llama": WIDE,
    "Llama, three query heads a head of keys": {**WIDE, "hidden_size": 192, "num_attention_heads": 6},
    "Gemma 2": {**WIDE, "query_pre_attn_scalar": 32},
    "GPT-OSS": WIDE,
    "Mistral (window)": WIDE,
    "Llama 4 (text)": WIDE,
}
"""Full attention, windows, chunks, scores that are capped, and sinks; with heads of 32 numbers, see above."""


@pytest.mark.parametrize(("kind", "sizes"), KINDS.items())
def test_packed_rows_give_what_plain_transformers_gives_on_a_cpu_with_gradients(
    kind: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    """FlexAttention, forward and backward, in rows of many tiles and of one, against separate sequences in float32."""
    assert device().type == "cuda"
    save_random(kind.partition(",")[0], tmp_path, **sizes)
    ours = load_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for groups in (sequences(), sequences()[:1]):
        found, expected = packed_logps(ours, groups), plain_logps(plain, groups)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, atol=1e-4, rtol=0)
    torch.cat(found).sum().backward()
    torch.cat(expected).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad.cpu(), theirs[name].grad, atol=1e-3, rtol=1e-3)


def test_what_is_compiled_serves_rows_of_any_length(tiny: Path) -> None:
    """FlexAttention is compiled for one size, for any, and for what fits into one tile: not for every row anew, which
    would take seconds each, and stop at a limit beyond which all pairs are held."""
    model, compiled = load_model(tiny), []
    for length in (200, 500, 40, *range(60, 900, 70)):
        groups = [singles(0, list(range(5, 25)), [[7] * length, [9] * (length // 2)])]
        packed_logps(model, groups)[0].sum().backward()
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0]
    assert compiled[-1] == compiled[2]


def test_greedy_answers_are_those_of_generate_on_a_cpu(tiny: Path) -> None:
    prompts, end = [group.prompt[: 9 + 7 * group.key] for group in sequences()], 1
    settings = Settings((end,), temperature=0, top_p=1, rows=3)
    asked = [Request(number, prompt, 0, 24) for number, prompt in enumerate(prompts)]
    found = {one.number: one.response.ids for one in TransformersSampler(load_model(tiny)).sample(asked, settings)}
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    for number, prompt in enumerate(prompts):
        given = torch.tensor([prompt])
        answer = plain.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=24)
        assert found[number] == answer[0, len(prompt) :].tolist()


def test_the_whole_method_runs_in_bfloat16(tiny: Path, tmp_path: Path) -> None:
    data, lines = write_problems(tmp_path / "data"), Lines()
    given = {"model": tiny, "training_file": data, "validation_file": data}
    metrics = run_job(tmp_path, "allo", Data("problems", validation="problems"), given, SETTINGS, Report(lines))
    assert list(metrics)[-1] == "evaluate"
    first = next(line["metrics"] for line in lines.lines() if "reward_margin" in line.get("metrics", {}))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["reward_margin"] == 0


class StopsAfter(Report):
    """A report that asks to stop when so many steps are done."""

    def __init__(self, steps: int) -> None:
        super().__init__(Lines())
        self._steps = steps

    def progress(self, step: int, total: int, metrics: Any = None) -> None:
        self.stop_requested |= bool(metrics) and metrics.get("step", 0) >= self._steps


def test_a_stage_that_was_stopped_goes_on_to_the_same_model(tiny: Path, tmp_path: Path) -> None:
    inputs = {"model": tiny, "examples": write_problems(tmp_path / "data")}
    config = SftConfig(learning_rate=1e-3, n_epochs=5, batch_size=2)
    sft.run(config, inputs, tmp_path / "whole", tmp_path / "w1", Report(Lines()))
    with pytest.raises(Stopped):
        sft.run(config, inputs, tmp_path / "cut", tmp_path / "w2", StopsAfter(7))
    sft.run(config, inputs, tmp_path / "cut", tmp_path / "w2", Report(Lines()))
    whole, cut = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint").state_dict() for name in ("whole", "cut")
    )
    started = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    for (
        name,
        weight,
    ) in whole.items():  # a device adds in any order, which Adam's first steps make much of
        moved = (weight - started[name]).abs().mean()
        assert (cut[name] - weight).abs().mean() <= 0.05 * moved + 1e-6, name


def test_rows_shrink_where_the_device_is_too_small(tmp_path: Path) -> None:
    """A model of 60 M weights, held to 6 GB: rows of 65,536 tokens do not fit, shorter ones do."""
    config = LlamaConfig(
        vocab_size=261, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    line = '{"problem": "%s", "solution": "%s"}\n'
    (tmp_path / "data" / "data.jsonl").write_text("".join(line % (f"{n:03} " * 60, f"{n} " * 60) for n in range(256)))
    total = torch.cuda.get_device_properties(0).total_memory
    lines = Lines()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6 * 2**30 / total)
    try:
        stage = SftConfig(n_epochs=1, batch_size=256, micro_batch_tokens=65_536)
        inputs = {"model": tmp_path / "model", "examples": tmp_path / "data"}
        sft.run(stage, inputs, tmp_path / "out", tmp_path / "work", Report(lines))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("memory was full" in line.get("message", "") for line in lines.lines())
