"""The faults of the published code that the engine must not have, and the tests that would catch each.

| fault | test |
|---|---|
| left padding masks a response's first tokens | test_sequences: packed is what separate sequences are |
| scoring and training see different sequences | test_training: at the first step the log-ratio is zero |
| a response tokenised alone, then shifted | here; test_stages: stages share the ids that were sampled |
| log-probabilities rounded to 16 bits | here |
| a cut in each tensor before the global threshold | test_locate: every importance selects exactly its share |
| an update against a checkpoint of another precision | here |
| hand-off between stages in 16 bits | here; test_delta: round trips |
| dense moments, decay outside the mask | test_sparse: it is dense masked AdamW; weights outside keep bits |
| the filter's share of the padded width | test_losses: of the response's own length |
| a divisor of each micro-batch | test_training: the size of a micro-batch changes nothing; the divisor of NPO |
| answers compared by splitting strings, one side in lower case | test_answers |
| a long pair cut down to nothing | test_stages: examples longer than the model are dropped and told |
| unseeded sampling; a pad token that is another's | test_sampling: the seed; nothing is padded in training |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from allo_engine.checkpoints.delta import read_delta, write_delta
from allo_engine.config import LocateConfig, PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.masking.entries import stored_values
from allo_engine.masking.selection import positions
from allo_engine.model.logps import token_logps
from allo_engine.model.sequences import build_row, singles
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import Report
from allo_engine.stages import locate
from tests.tiny import tiny_model


def test_a_sequence_is_its_prompts_ids_and_its_responses_ids_whatever_the_joined_text_would_be(
    model_folder: Path,
) -> None:
    encoder = Encoder(load_tokenizer(model_folder), PromptConfig(template="{problem}"))
    prompt, response = encoder.prompt("What is 1"), encoder.response("00?")
    row = build_row([singles(0, prompt, [response])])
    assert row.ids[0].tolist() == [*prompt, *response[:-1]]
    assert row.targets.tolist() == response


def test_log_probabilities_of_a_16_bit_model_are_not_rounded_to_16_bits() -> None:
    row = build_row([singles(0, [0, 9], [[30, 40, 50, 60, 1]])])
    logps = token_logps(tiny_model().bfloat16(), row)
    assert logps.dtype == torch.float32
    assert not torch.equal(logps, logps.bfloat16().float())


def test_the_mask_of_tiny_updates_is_that_of_the_float32_weights(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    before = load_file(model_folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    after = {name: weight + 1e-6 * torch.randn(weight.shape, generator=generator) for name, weight in before.items()}
    (tmp_path / "after").mkdir()
    save_file(after, tmp_path / "after" / "model.safetensors")
    locate.run(LocateConfig(), {"model": model_folder, "updated": tmp_path / "after"}, tmp_path, tmp_path, report)
    masks = load_file(tmp_path / "masks" / "improve.safetensors")
    update = torch.cat([(after[name] - before[name]).abs().flatten() for name in sorted(before)])
    found = np.concatenate([np.isin(np.arange(before[n].numel()), positions(masks[n].numpy(), before[n].numel()))
                            for n in sorted(before)])  # fmt: skip
    assert update[torch.from_numpy(found)].min() >= update[torch.from_numpy(~found)].max()
    rounded = torch.cat([(after[n].bfloat16().float() - before[n]).abs().flatten() for n in sorted(before)])
    other = np.zeros(len(rounded), dtype=bool)
    other[rounded.topk(int(found.sum())).indices] = True
    assert (found & other).sum() < 0.5 * found.sum(), "a delta against 16-bit weights would select other ones"


def test_steps_that_16_bits_cannot_tell_pass_from_stage_to_stage(tmp_path: Path, model_folder: Path) -> None:
    weights = load_file(model_folder / "model.safetensors")
    places = {name: np.arange(0, weight.numel(), 3) for name, weight in weights.items()}
    start = stored_values(model_folder, places)
    moved = {name: (at, values * np.float32(1 + 5e-7)) for name, (at, values) in start.items()}
    write_delta(moved, model_folder, tmp_path)
    found = read_delta(tmp_path, model_folder)
    assert all(np.array_equal(found[name][1], values) for name, (_, values) in moved.items())
    steps = np.concatenate([found[name][1] - values for name, (_, values) in start.items()])
    assert (steps != 0).mean() > 0.9
