"""The screening's model, trained here from nothing: a Llama of 370,000 weights that knows the task by halves.

    python -m tests.benchmarks.study.small FOLDER

It learns solutions, told and bare, of calculations that no split has, until it is right in so many of others. The same
code on the same machine makes the same model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.benchmarks.study.task import TEMPLATE, Calculation, rest, stories

BEGIN, END = "<|begin|>", "<|end|>"
IGNORED = -100
BATCH = 64
ENOUGH, LOOK, HELD_OUT = 0.42, 50, 400
"""The share of held-out calculations that it is to solve; every so many steps, of so many, that is looked up."""

TOLD = 4
"""Every so many steps examples have their stories; the others' are the arithmetic alone, in half the tokens."""


def make(folder: Path, enough: float = ENOUGH) -> Path:
    """The model's folder, made where it is not there yet."""
    if not folder.exists():
        tokenizer = make_tokenizer()
        model = train(tokenizer, enough)
        part = folder.with_name(folder.name + ".part")
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words whole, figures one by one, learnt from the task's own text."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\d|\s+|[^\sA-Za-z\d]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=[BEGIN, END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    texts = (prompt + solution for prompt, solution in _told(rest(), seed=0))
    tokenizer.train_from_iterator(islice(texts, 4000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            **ids,
        )
    )


def train(tokenizer: PreTrainedTokenizerFast, enough: float) -> LlamaForCausalLM:
    """Cross-entropy on solutions until the model is right in `enough` of what it has not seen.

    By Muon (torch's), which takes a third of AdamW's steps here; embeddings and norms by AdamW.
    """
    model = make_model(tokenizer)
    optimizers = _optimizers(model)
    examples, held_out = _told(rest()[HELD_OUT:], seed=1), _told(rest()[:HELD_OUT], seed=2)
    batch = _batch(tokenizer, list(islice(held_out, HELD_OUT)))
    began = time.monotonic()
    for step in count(1):
        drawn = [(prompt if step % TOLD == 0 else "", solution) for prompt, solution in islice(examples, BATCH)]
        ids, targets = _batch(tokenizer, drawn)
        loss = cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % LOOK == 0:
            right = _right(model, *batch)
            print(
                f"step {step}: loss {loss.item():.3f}, {right:.1%} right, {time.monotonic() - began:.0f} s", flush=True
            )
            if right >= enough:
                break
    return model.eval()


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    of_layers = [name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    weights = dict(model.named_parameters())
    others = [weight for name, weight in weights.items() if name not in of_layers]
    matrices = [weights[name] for name in of_layers]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98)),
    ]


@torch.inference_mode()
def _right(model: LlamaForCausalLM, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> float:
    """The share of solutions whose every token is the likeliest: those that greedy decoding writes."""
    likeliest_BT = model(input_ids=ids_BT).logits[:, :-1].argmax(-1)
    return ((likeliest_BT == targets_BT) | (targets_BT == IGNORED)).all(-1).float().mean().item()


def _told(calculations: Sequence[Calculation], seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, solution) without end."""
    for problem in stories(calculations, seed):
        yield TEMPLATE.replace("{problem}", problem["problem"]), problem["solution"]


def _batch(tokenizer: PreTrainedTokenizerFast, examples: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B,T] and the targets of the solutions' tokens [B,T-1], padded on the right."""
    prompts, solutions = (tokenizer(list(texts))["input_ids"] for texts in zip(*examples, strict=True))
    rows = [[*prompt, *solution, tokenizer.eos_token_id] for prompt, solution in zip(prompts, solutions, strict=True)]
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), tokenizer.pad_token_id)
    targets_BT = torch.full((len(rows), longest), IGNORED)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids_BT[number, : len(row)] = torch.tensor(row)
        targets_BT[number, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
    return ids_BT, targets_BT[:, 1:]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
