"""The whole job in the published way: what transformers, TRL and torch give, put together as the released scripts are.

HF `generate` samples, TRL's trainers train all weights with a second model as live reference, responses are scored one
at a time with the logits of every position, the mask is a `torch.topk` over all updates at once, and the masked stages
are dense AdamW on gradients times the mask, in padded batches. Answers are judged by our own code, so that both sides
prefer the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from allo_engine.data.answers import Verdict, compare
from allo_engine.data.records import Problem, SampledProblem
from allo_engine.data.rewriting import INSTRUCTION, PROBLEM
from allo_engine.model.loading import load_model
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.stages.pair import negatives_of, pair_up
from tests.benchmarks.job import Settings, template

MICRO_BATCH = 4
"""Sequences, or pairs, of one padded forward pass."""

Ids = list[int]
Loss = Callable[[Sequence[Any], PreTrainedModel], Tensor]


class Published:
    """One job; `folder` holds the model that it starts from."""

    def __init__(
        self, folder: Path, problems: Sequence[Problem], heldout: Sequence[Problem], settings: Settings
    ) -> None:
        self._folder, self._problems, self._heldout, self._settings = folder, problems, heldout, settings
        self._tokenizer = load_tokenizer(folder)
        self._end = int(self._tokenizer.eos_token_id)

    def run(self) -> None:
        """sft, sample, pair, warm-up, locate, reward model, token rewards, forget, improve, evaluate."""
        settings, base = self._settings, load_model(self._folder)
        self._evaluate(base)
        examples = [(template(found.problem), found.solution) for found in self._problems]
        start = self._supervised(base, examples, settings.sft_rate)
        self._evaluate(start)
        pairs, negatives = self._paired(self._sampled(start))
        warm = self._preferred(start, pairs)
        self._evaluate(warm)
        masks = self._located(start, warm)
        del base, warm
        firsts = {found.problem: (found, wrong, right) for found, wrong, right in reversed(negatives)}.values()
        rewritings = [(self._rewriting(found, wrong), self._text(right)) for found, wrong, right in firsts]
        rewriter = self._supervised(start, rewritings, settings.rewriter_rate)
        scored = [self._scored(start, rewriter, *negative) for negative in negatives]
        del rewriter
        forgotten = self._masked(start, masks, scored, settings.forget_rate, self._forgetting)
        self._evaluate(forgotten)
        aligned = self._masked(forgotten, masks, pairs, settings.improve_rate, self._improving(forgotten))
        self._evaluate(aligned)

    # --- TRL

    def _copy(self, model: PreTrainedModel) -> PreTrainedModel:
        copy = load_model(self._folder)
        copy.load_state_dict(model.state_dict())
        return copy

    def _supervised(self, start: PreTrainedModel, examples: list[tuple[str, str]], rate: float) -> PreTrainedModel:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        model = self._copy(start)
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in examples]
        with tempfile.TemporaryDirectory() as work:
            config = SFTConfig(output_dir=work, learning_rate=rate, num_train_epochs=1, **self._trained())
            SFTTrainer(
                model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=self._tokenizer
            ).train()
        return model.eval()

    def _preferred(self, start: PreTrainedModel, pairs: list[tuple[Ids, Ids, Ids]]) -> PreTrainedModel:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        model = self._copy(start)
        rows = [dict(zip(("prompt", "chosen", "rejected"), map(self._text, pair), strict=True)) for pair in pairs]
        with tempfile.TemporaryDirectory() as work:
            config = DPOConfig(
                output_dir=work, learning_rate=self._settings.warmup_rate, num_train_epochs=1, beta=0.1,
                **self._trained(),
            )  # fmt: skip
            DPOTrainer(
                model=model, ref_model=start, args=config, train_dataset=Dataset.from_list(rows),
                processing_class=self._tokenizer,
            ).train()  # fmt: skip
        return model.eval()

    def _trained(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": MICRO_BATCH,
            "gradient_accumulation_steps": self._settings.batch_size // MICRO_BATCH,
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
        }

    # --- transformers

    def _sampled(self, model: PreTrainedModel) -> list[list[Ids]]:
        """Each problem's responses, drawn at temperature 0.7 and top-p 0.95."""
        n, texts = self._settings.n, [template(found.problem) for found in self._problems]
        drawn = self._generated(
            model, texts, 64 // n, do_sample=True, temperature=0.7, top_p=0.95, num_return_sequences=n
        )
        return [drawn[first : first + n] for first in range(0, len(drawn), n)]

    def _evaluate(self, model: PreTrainedModel) -> float:
        """Greedy accuracy."""
        texts = [template(found.problem) for found in self._heldout]
        answers = map(self._text, self._generated(model, texts, 64, do_sample=False))
        verdicts = [compare(answer, _gold(found)) for answer, found in zip(answers, self._heldout, strict=True)]
        return sum(verdict is Verdict.RIGHT for verdict in verdicts) / len(verdicts)

    @torch.no_grad()
    def _generated(self, model: PreTrainedModel, texts: list[str], size: int, **how: Any) -> list[Ids]:
        self._tokenizer.padding_side = "left"
        found: list[Ids] = []
        for first in range(0, len(texts), size):
            batch = self._tokenizer(texts[first : first + size], return_tensors="pt", padding=True)
            out = model.generate(
                **batch, max_new_tokens=self._settings.max_tokens, pad_token_id=self._end, top_k=0, **how
            )
            found += map(self._until_end, out[:, batch["input_ids"].shape[1] :].tolist())
        return found

    def _until_end(self, ids: Ids) -> Ids:
        return [*ids[: ids.index(self._end)], self._end] if self._end in ids else ids

    def _paired(self, sampled: list[list[Ids]]) -> tuple[list[tuple[Ids, Ids, Ids]], list[tuple[Problem, Ids, Ids]]]:
        """(prompt, chosen, rejected), and (problem, wrong, correction)."""
        pairs, negatives = [], []
        for number, (problem, responses) in enumerate(zip(self._problems, sampled, strict=True)):
            prompt = self._tokenizer(template(problem.problem))["input_ids"]
            by: dict[Verdict, list[Ids]] = {verdict: [] for verdict in Verdict}
            for ids in responses:
                verdict = compare(self._text(ids), _gold(problem)) if ids[-1] == self._end else Verdict.UNPARSED
                by[verdict] += [ids] if ids not in by[verdict] else []
            right, wrong = by[Verdict.RIGHT], by[Verdict.WRONG]
            if right and wrong:
                drawn = pair_up(prompt, right, wrong, self._settings.max_pairs, str(number))
                pairs += [(prompt, drawn.responses[first], drawn.responses[second]) for first, second in drawn.pairs]
            if wrong:
                solution = [*self._tokenizer(problem.solution)["input_ids"], self._end]
                kept = wrong[: self._settings.max_negatives]
                nearest = negatives_of(_as_sampled(problem), kept, right or [solution]).corrections
                negatives += [(problem, ids, correction) for ids, correction in zip(kept, nearest, strict=True)]
        return pairs, negatives

    def _text(self, ids: Ids) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    # --- the method as it was released

    def _located(self, before: PreTrainedModel, after: PreTrainedModel) -> dict[str, Tensor]:
        old = dict(before.named_parameters())
        moved = {name: (new.detach() - old[name].detach()).abs() for name, new in after.named_parameters()}
        everything = torch.cat([change.flatten() for change in moved.values()])
        cut = everything.topk(round(self._settings.ratio * len(everything))).values[-1]
        return {name: (change >= cut).float() for name, change in moved.items()}

    def _rewriting(self, problem: Problem, wrong: Ids) -> str:
        shown = PROBLEM.replace("{problem}", problem.problem).replace("{solution}", problem.solution)
        return shown + self._text(wrong) + INSTRUCTION

    def _scored(
        self, start: PreTrainedModel, rewriter: PreTrainedModel, problem: Problem, wrong: Ids, _: Ids
    ) -> tuple[Ids, Ids, Tensor, Tensor]:
        """(prompt, response, weight and reference log-probability of each token); one response at a time."""
        prompt = self._tokenizer(template(problem.problem))["input_ids"]
        context = self._tokenizer(self._rewriting(problem, wrong))["input_ids"]
        weights = (_alone(rewriter, context, wrong).exp() < 0.5).float()
        return prompt, wrong, weights, _alone(start, prompt, wrong)

    def _masked(
        self, model: PreTrainedModel, masks: dict[str, Tensor], items: Sequence[Any], rate: float, loss: Loss
    ) -> PreTrainedModel:
        """AdamW over all weights on gradients times the mask."""
        trained = self._copy(model)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=0.0)
        for first in range(0, len(items), self._settings.batch_size):
            batch = items[first : first + self._settings.batch_size]
            for part in range(0, len(batch), MICRO_BATCH):
                (loss(batch[part : part + MICRO_BATCH], trained) / len(batch)).backward()
            for name, weight in trained.named_parameters():
                weight.grad.mul_(masks[name])
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return trained

    def _forgetting(self, batch: Sequence[tuple[Ids, Ids, Tensor, Tensor]], model: PreTrainedModel) -> Tensor:
        logps = _padded(model, [(prompt, wrong) for prompt, wrong, _, _ in batch], self._end)
        terms = [
            -(weights * torch.nn.functional.logsigmoid(-0.1 * (found - reference))).sum()
            for found, (_, _, weights, reference) in zip(logps, batch, strict=True)
        ]
        return torch.stack(terms).sum()

    def _improving(self, reference: PreTrainedModel) -> Loss:
        def loss(batch: Sequence[tuple[Ids, Ids, Ids]], model: PreTrainedModel) -> Tensor:
            both = [(prompt, ids) for prompt, *pair in batch for ids in pair]
            with torch.no_grad():
                theirs = _padded(reference, both, self._end)
            ratios = [mine - their for mine, their in zip(_padded(model, both, self._end), theirs, strict=True)]
            terms = []
            for chosen, rejected in zip(ratios[::2], ratios[1::2], strict=True):
                lowest = rejected.topk(max(1, round(0.1 * len(rejected))), largest=False).values
                terms.append(-torch.nn.functional.logsigmoid(0.1 * (chosen.sum() - lowest.sum())))
            return torch.stack(terms).sum()

        return loss


@torch.no_grad()
def _alone(model: PreTrainedModel, prompt: Ids, response: Ids) -> Tensor:
    """logπ of a response's tokens, from all logits of its sequence."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0]
    logps = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None])[:, 0]


def _padded(model: PreTrainedModel, sequences: list[tuple[Ids, Ids]], pad: int) -> list[Tensor]:
    """logπ of each response's tokens, in one batch that is padded on the right."""
    rows = [torch.tensor([*prompt, *response]) for prompt, response in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logps = model(ids, attention_mask=mask).logits.float().log_softmax(-1)
    return [
        logps[place, len(prompt) - 1 : len(prompt) + len(response) - 1].gather(1, torch.tensor(response)[:, None])[:, 0]
        for place, (prompt, response) in enumerate(sequences)
    ]


def _gold(problem: Problem) -> str:
    return str(problem.answer)


def _as_sampled(problem: Problem) -> SampledProblem:
    return SampledProblem(problem.problem, problem.solution, problem.answer, [], [], [], [])
