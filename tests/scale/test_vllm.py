"""vLLM's answers against transformers' own, on real engines: one process a model, all of them on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from allo_engine import sampling
from allo_engine.checkpoints.delta import write_delta
from allo_engine.data.prompts import Encoder
from allo_engine.model.loading import load_model
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sampling import Request, Sampler, Settings, TransformersSampler, VllmSampler
from tests.benchmarks import material
from tests.scale.conftest import HIDDEN
from tests.tiny import save_tiny, tiny_model
from tests.unit.engine.conftest import Lines

END, OTHER_END = 1, 77
PROMPTS = [[0, *range(place + 10, place + 10 + 3 * place)] for place in range(12)]


@contextmanager
def served(folder: Path, model: Callable[[], PreTrainedModel], dtype: torch.dtype) -> Iterator[VllmSampler]:
    sampler = VllmSampler(folder, dtype, model)
    try:
        yield sampler
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[VllmSampler]:
    with served(folder, lambda: load_model(folder), torch.float32) as opened:
        yield opened


@pytest.fixture(scope="module")
def own(folder: Path) -> TransformersSampler:
    return TransformersSampler(load_model(folder))


def requests(
    max_tokens: int = 24, n: int = 1, seed: int = 0, prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[Request]:
    return [Request(number, prompt, seed, max_tokens, range(n)) for number, prompt in enumerate(prompts)]


def ids(sampler: Sampler, asked: Sequence[Request], plan: Settings) -> dict[tuple[int, int], list[int]]:
    found = {(number, sample): response.ids for number, sample, response in sampler.sample(asked, plan)}
    assert len(found) == sum(len(request.samples) for request in asked)
    return found


SOME = Settings((END,), temperature=1.0, top_p=0.9, rows=64)


def test_greedy_responses_are_those_of_transformers(sampler: VllmSampler, own: TransformersSampler) -> None:
    assert ids(sampler, requests(), Settings((END,))) == ids(own, requests(), Settings((END,)))


def test_a_response_ends_at_the_first_of_its_ends_or_at_its_own_limit(sampler: VllmSampler) -> None:
    asked = [Request(place, prompt, 0, 1 + 2 * place, range(8)) for place, prompt in enumerate(PROMPTS)]
    found = ids(sampler, asked, Settings((END, OTHER_END, 200), temperature=2.0))
    ended = 0
    for (number, _), tokens in found.items():
        places = [place for place, token in enumerate(tokens) if token in (END, OTHER_END, 200)]
        assert places == [len(tokens) - 1] if places else len(tokens) == 1 + 2 * number
        ended += bool(places)
    assert ended
    assert {tokens[-1] for tokens in found.values()} >= {END, OTHER_END, 200}


def test_what_a_response_is_depends_on_seed_number_and_sample_alone(sampler: VllmSampler) -> None:
    whole = ids(sampler, requests(n=4), SOME)
    assert len({tuple(tokens) for tokens in whole.values()}) > 40
    assert ids(sampler, requests(n=4)[::-1], SOME) == whole
    few = Settings((END,), temperature=1.0, top_p=0.9, rows=2)
    assert ids(sampler, requests(n=4), few) == whole
    left = [
        Request(7, PROMPTS[7], 0, 24, (3, 1)),
        Request(2, PROMPTS[2], 0, 24, (2,)),
        Request(5, PROMPTS[5], 0, 24, ()),
    ]
    assert ids(sampler, left, SOME) == {key: whole[key] for key in [(7, 3), (7, 1), (2, 2)]}
    other = ids(sampler, requests(n=4, seed=1), SOME)
    assert sum(other[key] == whole[key] for key in whole) < 5


def test_tokens_come_from_the_nucleus_of_the_model(sampler: VllmSampler, folder: Path) -> None:
    model = load_model(folder)
    drawn = 0
    for (number, _), tokens in ids(sampler, requests(n=8), Settings((END,), temperature=1.5, top_p=0.7)).items():
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*PROMPTS[number], *tokens]])).logits[
                0, len(PROMPTS[number]) - 1 : -1
            ]
        probs, order = (logits / 1.5).softmax(-1).sort(descending=True)
        before = probs.cumsum(-1) - probs
        place = (order == torch.tensor(tokens)[:, None]).int().argmax(-1)
        assert (before.gather(1, place[:, None]) < 0.7 + 1e-5).all()
        drawn += int((place > 0).sum())
    assert drawn > 100


def test_what_nobody_waits_for_is_given_up_and_longer_requests_may_come(
    sampler: VllmSampler, own: TransformersSampler
) -> None:
    answers = sampler.sample(requests(), Settings((END,)))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    asked = requests(max_tokens=150, prompts=PROMPTS[:2])
    assert ids(sampler, asked, Settings(())) == ids(own, asked, Settings(()))


def small(count: int) -> list[Request]:
    encoder = Encoder(load_tokenizer(material.model()))
    texts = [
        f"What is {place} + {3 * place}? Explain it to a {who}." for place, who in enumerate(["child", "cat"] * count)
    ]
    return [Request(place, encoder.prompt(text), 0, 24) for place, text in enumerate(texts[:count])]


def test_a_real_model_greedily_says_the_same_on_fifty_prompts() -> None:
    model = load_model(material.model())
    plan = Settings((2,), rows=25)
    with served(material.model(), lambda: load_model(material.model()), torch.float32) as sampler:
        found = ids(sampler, small(52), plan)
    assert found == ids(TransformersSampler(model), small(52), plan)


def test_16_bits_round_and_the_canary_lives() -> None:
    """In bfloat16 texts part at ties. Up to there each token is the model's own likeliest, as far as rounding goes."""
    model = load_model(material.model(), torch.bfloat16)
    with served(material.model(), lambda: model, torch.bfloat16) as sampler:
        for number, tokens in (
            (number, tokens) for (number, _), tokens in ids(sampler, small(6), Settings((2,))).items()
        ):
            prompt = small(6)[number].prompt
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
            logps = logits.log_softmax(-1)
            gaps = logps.max(-1).values - logps.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert gaps.max() <= 0.5


def test_another_models_weights_are_noticed(tmp_path: Path, folder: Path) -> None:
    save_tiny(tmp_path, seed=1, hidden=HIDDEN)
    with (
        served(tmp_path, lambda: load_model(folder), torch.float32) as sampler,
        pytest.raises(StageError, match="backend to 'transformers'") as caught,
    ):
        list(sampler.sample(requests(), SOME))
    assert caught.value.code == "sampler_disagrees"


def test_a_delta_that_was_left_out_is_noticed_though_it_changes_no_token(tmp_path: Path, folder: Path) -> None:
    """What alignment moves is small: text alone would not show it."""
    moved = tiny_model(hidden=HIDDEN)
    moved.model.norm.weight.data[:64] *= 1.01
    greedy = Settings((END,))
    texts = [ids(TransformersSampler(model), requests(16)[:4], greedy) for model in (moved, tiny_model(hidden=HIDDEN))]
    assert texts[0] == texts[1]
    with (
        served(folder, lambda: moved, torch.float32) as sampler,
        pytest.raises(StageError, match="log-probability") as caught,
    ):
        list(sampler.sample(requests(), SOME))
    assert caught.value.code == "sampler_disagrees"


def test_a_delta_is_merged_for_it_and_the_merged_model_removed(tmp_path: Path, folder: Path) -> None:
    """In bfloat16 the canary compares it with the delta's values in the model, rounded once. Tied: the head too."""
    entries = np.arange(0, 9000, 7)
    write_delta({"model.embed_tokens.weight": (entries, np.full(1286, 0.01, np.float32))}, folder, tmp_path / "delta")
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "left by a killed run").touch()
    with sampling.open(folder, tmp_path / "delta", torch.bfloat16, None, tmp_path, "vllm") as sampler:
        assert len(ids(sampler, requests(8), Settings((END,)))) == len(PROMPTS)
        assert {path.name for path in merged.iterdir()} >= {"config.json", "model.safetensors"}
    assert not merged.exists()


def test_what_vllm_cannot_serve_is_decoded_by_transformers_where_the_choice_is_ours(
    tmp_path: Path, report: Report, stream: Lines
) -> None:
    """Heads of 8 have no kernel there."""
    save_tiny(tmp_path)

    vllm = VllmSampler(tmp_path, torch.float32, lambda: load_model(tmp_path), report)
    own = TransformersSampler(load_model(tmp_path))
    assert ids(sampling.WhereServed(vllm, lambda: own, report), requests(), SOME) == ids(own, requests(), SOME)
    (line,) = stream.lines()
    assert line["level"] == "warn"
    assert "vLLM cannot serve this model here: Unsupported CPU attention configuration" in line["message"]


def test_a_stop_is_seen_while_the_engine_loads(folder: Path, report: Report) -> None:
    report.stop_requested = True
    sampler = VllmSampler(folder, torch.float32, lambda: load_model(folder), report)
    with pytest.raises(Stopped):
        list(sampler.sample(requests(), SOME))


def test_its_log_probabilities_are_no_reference(sampler: VllmSampler) -> None:
    assert [found.response.logps for found in sampler.sample(requests(), SOME)] == [None] * len(PROMPTS)
