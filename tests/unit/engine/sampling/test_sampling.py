from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from allo_engine import sampling
from allo_engine.checkpoints.delta import write_delta
from allo_engine.model.decoding import decoding_bytes
from allo_engine.model.memory import SPARE, Use
from allo_engine.model.shape import shape_in_memory
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sampling import Request, Response, Sampler, Settings, TransformersSampler
from allo_engine.sampling.nucleus import CANDIDATES, EVERYTHING, candidates_for, draw
from tests.tiny import tiny_model
from tests.unit.engine.conftest import Lines

PROMPTS = [[0, 10, 20], [0, 10, 20, 30], [0, 5], [0, 40, 41, 42, 43, 44, 45], [7]]
END = 1


def requests(
    max_tokens: int = 12, n: int = 1, seed: int = 0, prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[Request]:
    return [Request(number, prompt, seed, max_tokens, range(n)) for number, prompt in enumerate(prompts)]


def drawn(sampler: Sampler, asked: Sequence[Request], plan: Settings) -> dict[tuple[int, int], Response]:
    found = [(number, sample, response) for number, sample, response in sampler.sample(asked, plan)]
    assert len(found) == sum(len(request.samples) for request in asked)
    return {(number, sample): response for number, sample, response in found}


def ids_of(found: dict[tuple[int, int], Response]) -> dict[tuple[int, int], list[int]]:
    return {key: response.ids for key, response in found.items()}


def sample(
    rows: int, seed: int = 0, prompts: list[list[int]] = PROMPTS, n: int = 3
) -> dict[tuple[int, int], list[int]]:
    plan = Settings((END,), temperature=1.0, top_p=0.9, rows=rows)
    return ids_of(drawn(TransformersSampler(tiny_model()), requests(n=n, seed=seed, prompts=prompts), plan))


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_what_a_request_gets_does_not_depend_on_its_batch(rows: int) -> None:
    assert sample(rows) == sample(rows=64)


def test_what_a_request_gets_does_not_depend_on_the_other_requests() -> None:
    assert [sample(64)[1, n] for n in range(3)] == [sample(64, prompts=[[0, 99], PROMPTS[1]])[1, n] for n in range(3)]
    assert sample(64, n=1)[2, 0] == sample(64)[2, 0]


def logps_of_a_plain_forward(model: PreTrainedModel, prompt: Sequence[int], ids: list[int]) -> Tensor:
    logps = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0].float().log_softmax(-1)
    return logps[torch.arange(len(ids)) + len(prompt) - 1, torch.tensor(ids)]


def test_the_kept_log_probabilities_are_those_of_a_plain_forward_pass() -> None:
    found = drawn(TransformersSampler(tiny_model()), requests(n=3), Settings((END,), 0.5, 0.9, rows=4))
    for (number, _), response in found.items():
        expected = logps_of_a_plain_forward(tiny_model(), PROMPTS[number], response.ids)
        assert torch.allclose(torch.tensor(response.logps), expected, atol=1e-5)


def test_samples_of_a_problem_differ_and_follow_the_seed() -> None:
    found = sample(rows=64)
    assert len({tuple(found[0, n]) for n in range(3)}) > 1
    assert found != sample(rows=64, seed=1)


def test_a_response_ends_at_its_first_end_token_or_at_the_limit() -> None:
    plan = Settings((END, 30, 99), temperature=3.0, rows=4)
    found = drawn(TransformersSampler(tiny_model()), requests(60, 4), plan)
    ended = 0
    for response in found.values():
        ends = [place for place, token in enumerate(response.ids) if token in plan.ends]
        assert ends == [len(response.ids) - 1] if ends else len(response.ids) == 60
        ended += bool(ends)
    assert 0 < ended < len(found)


def test_every_request_has_its_own_limit() -> None:
    asked = [Request(number, prompt, 0, 3 + 5 * number) for number, prompt in enumerate(PROMPTS)]
    found = drawn(TransformersSampler(tiny_model()), asked, Settings((), rows=2))
    assert [len(found[number, 0].ids) for number in range(5)] == [3, 8, 13, 18, 23]
    longer = drawn(TransformersSampler(tiny_model()), requests(30), Settings((), rows=64))
    assert all(found[key].ids == longer[key].ids[: len(found[key].ids)] for key in found)


def test_responses_come_as_they_end_and_others_take_their_rows() -> None:
    asked = [Request(0, [0, 9, 9], 0, 100), *(Request(number, [0, 5], 0, 4) for number in range(1, 9))]
    order = [found.number for found in TransformersSampler(tiny_model()).sample(asked, Settings((), rows=2))]
    assert order == [*range(1, 9), 0]


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: scalars and copies that leave it, shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.name().removeprefix("aten::").split(".")[0]
        boolean = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITS or boolean or (name == "_to_copy" and "device" in (kwargs or {})):
            self.places.append(name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("temperature", [0.0, 1.0, 4.0])
def test_the_device_is_read_once_a_step(temperature: float) -> None:
    """`tolist` of the step's answers is a copy without a dispatch on a CPU, so there must be nothing else at all."""
    model = tiny_model()
    steps: list[int] = []
    sampler = TransformersSampler(model)
    model.register_forward_hook(lambda *_: steps.append(1))
    with Reads() as reads:
        list(sampler.sample(requests(12, 3), Settings((END,), temperature, 0.95, rows=4)))
    assert len(steps) > 20
    assert reads.places == []


def test_the_counter_of_reads_counts_them() -> None:
    with Reads() as reads:
        tensor = torch.ones(3)
        assert bool(tensor.all())
        tensor[tensor > 0].sum().item()
        tensor.nonzero()
    assert len(reads.places) == 4


def fails_beyond(model: PreTrainedModel, rows: int) -> list[int]:
    """Let a model run out of memory as a device does, beyond so many rows; the rows of every pass that was tried."""
    tried: list[int] = []

    def hook(_module: object, _args: object, given: dict[str, Tensor]) -> None:
        tried.append(len(given["input_ids"]))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return tried


def test_rows_are_halved_where_memory_is_full_and_what_has_ended_is_kept(report: Report, stream: Lines) -> None:
    model = tiny_model()
    sampler = TransformersSampler(model, report)
    expected = sample(rows=64)
    tried = fails_beyond(model, rows=3)
    found = drawn(sampler, requests(n=3), Settings((END,), 1.0, 0.9, rows=8))
    assert ids_of(found) == expected
    assert max(tried[3:]) <= 8
    messages = [line["data"] for line in stream.lines() if line["type"] == "message"]
    assert messages == [{"decoding_batch": 4}, {"decoding_batch": 2}]


def test_the_next_model_of_a_stage_begins_with_the_rows_that_fitted(
    tmp_path: Path, report: Report, stream: Lines
) -> None:
    for seed in (0, 1):
        model = tiny_model(seed)
        sampler = TransformersSampler(model, report, work=tmp_path / "work")
        tried = fails_beyond(model, rows=3)
        drawn(sampler, requests(n=3), Settings((END,), 1.0, 0.9, rows=8))
    assert max(tried) <= 3
    assert [line["data"] for line in stream.lines()] == [{"decoding_batch": 4}, {"decoding_batch": 2}]


def test_rows_are_fitted_to_memory_and_a_long_prompt_takes_no_others_rows() -> None:
    """Memory has room for 16 short rows, of a prompt of 2 tokens and a response of 12, or for a long one."""
    model, prompts = tiny_model(), [*[[0, 5]] * 30, [0, *range(10, 210)]]
    short = [decoding_bytes(shape_in_memory(model), Use("forward", 4), rows, 13, 2 * rows) for rows in (16, 17)]
    sampler = TransformersSampler(model, free_bytes=round(sum(short) / 2 / SPARE))
    rows: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found = drawn(sampler, requests(prompts=prompts), Settings((), 1.0, 0.9))
    read = [width for _, width in rows if width > 1]
    assert read[0] == 200
    assert {count for count, width in rows[:13]} == {1}, "the long one has its row to itself"
    assert max(count for count, width in rows if width == 1) == 16
    expected = drawn(TransformersSampler(tiny_model()), requests(prompts=prompts), Settings((), 1.0, 0.9))
    assert ids_of(found) == ids_of(expected)


def test_16_bits_round_and_change_nothing_else() -> None:
    model = tiny_model().bfloat16()
    sampler = TransformersSampler(model)
    assert sampler.in_place
    found = drawn(sampler, requests(n=3), Settings((END,), 1.0, 0.9, rows=4))
    for (number, _), response in found.items():
        expected = logps_of_a_plain_forward(tiny_model().bfloat16(), PROMPTS[number], response.ids)
        assert torch.allclose(torch.tensor(response.logps), expected, atol=0.15)


def test_rounding_that_depends_on_the_number_of_rows_is_no_reason_against_decoding_in_place() -> None:
    """SmolLM2 in bfloat16 behind SFT: products of one row and of three round so that logits lie 0.07 of their spread
    apart, in the model's own cache as in place. Here the rounding is a hook's."""
    model = tiny_model()
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, out: out * (1.2 if len(out) == 1 else 1.0))
    assert TransformersSampler(model).in_place


def test_who_asks_to_stop_waits_for_no_response_to_end(report: Report) -> None:
    model, passes = tiny_model(), list[int]()
    sampler = TransformersSampler(model, report)

    def asks(*_: object) -> None:
        passes.append(1)
        report.stop_requested = len(passes) == 3

    model.base_model.register_forward_pre_hook(asks)
    with pytest.raises(Stopped):
        drawn(sampler, requests(400), Settings(()))
    assert len(passes) == 3


def test_what_does_not_fit_alone_says_what_to_change(report: Report) -> None:
    model = tiny_model()
    sampler = TransformersSampler(model, report)
    fails_beyond(model, rows=0)
    with pytest.raises(StageError, match="max_response_tokens") as caught:
        list(sampler.sample(requests(), Settings((END,))))
    assert caught.value.code == "out_of_memory"


def test_an_error_that_is_not_of_memory_is_not_tried_again() -> None:
    sampler = TransformersSampler(tiny_model())
    with pytest.raises(IndexError):
        list(sampler.sample(requests(prompts=[[0, 9999, 1]]), Settings((END,))))


def test_a_sampler_opens_a_folder_with_a_delta(model_folder: Path, tmp_path: Path) -> None:
    asked, plan = requests(), Settings((END,))
    with sampling.open(model_folder) as sampler:
        plain = drawn(sampler, asked, plan)
    write_delta({"model.norm.weight": (np.arange(32), -np.ones(32, np.float32))}, model_folder, tmp_path)
    with sampling.open(model_folder, tmp_path) as sampler:
        found = drawn(sampler, asked, plan)
    changed = tiny_model()
    changed.model.norm.weight.data.fill_(-1)
    assert found == drawn(TransformersSampler(changed), asked, plan)
    assert plain == drawn(TransformersSampler(tiny_model()), asked, plan)
    assert found != plain


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_draws_come_from_the_nucleus_by_its_own_distribution(seed: int, top_p: float, temperature: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 200)) * 3).float()
    probs = torch.softmax(logits / temperature, -1)[0].double()
    ordered, places = probs.sort(descending=True)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens, sizes, found = draw(logits.expand(4000, -1), grid, temperature, top_p, EVERYTHING)
    assert bool(found.all())
    size = int(sizes[0])  # the fewest tokens that reach top_p, but for what rounding leaves
    assert float(ordered[: size - 1].sum()) < top_p + 1e-6
    assert size == 200 or float(ordered[:size].sum()) > top_p - 1e-6
    nucleus = ordered[:size] / ordered[:size].sum()
    counts = torch.bincount(tokens, minlength=200)[places].double() / 4000
    assert float(counts[size:].sum()) == 0
    assert torch.allclose(counts[:size], nucleus, atol=1.5 / 4000 + 1e-4)
    few = draw(logits.expand(4000, -1), grid, temperature, top_p, CANDIDATES)
    assert bool((few.found == (sizes <= CANDIDATES)).all())
    assert all(candidates_for(size, True) >= size for size in sizes.tolist())
    assert torch.equal(few.tokens[few.found], tokens[few.found])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_nucleus_larger_than_the_candidates_is_found_all_the_same(attention: str) -> None:
    """At temperature 3 the tiny model's nuclei have over a hundred tokens; drawn by hand, a token at a time. With eager
    attention rows are decoded in the model's own cache, where none waits for a step."""
    model = tiny_model()
    model.set_attn_implementation(attention)
    asked = requests(6, 2)
    sampler = TransformersSampler(model)
    assert sampler.in_place == (attention == "sdpa")
    found = drawn(sampler, asked, Settings((), 3.0, 0.95, rows=3))
    large = 0
    for request in asked:
        for number in request.samples:
            ids: list[int] = []
            for uniform in request.uniforms(number):
                logits = tiny_model()(torch.tensor([[*request.prompt, *ids]])).logits[:, -1]
                token, size, _ = draw(logits, torch.tensor([uniform]), 3.0, 0.95, EVERYTHING)
                ids.append(int(token))
                large += int(size) > CANDIDATES
            assert found[request.number, number].ids == ids
    assert large > 20


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_zero_temperature_takes_the_likeliest(top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert draw(logits, torch.tensor([0.9, 0.9]), 0.0, top_p, EVERYTHING).tokens.tolist() == [1, 0]


def test_a_nucleus_that_was_not_found_is_looked_for_among_more_and_a_smaller_one_among_fewer() -> None:
    assert candidates_for(CANDIDATES, found=False) == 16 * CANDIDATES
    assert candidates_for(16 * CANDIDATES, found=False) == 256 * CANDIDATES
    assert candidates_for(3, found=True) == candidates_for(CANDIDATES, found=True) == CANDIDATES
    assert candidates_for(CANDIDATES + 1, found=True) == 16 * CANDIDATES
