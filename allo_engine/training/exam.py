"""Held-out problems that a model in training is asked, greedily, as `evaluate` asks: which share it answers rightly.

What is right is what the held-out responses answer: those that SFT would learn, or a pair's chosen one, which `pair`
has verified. Of pairs that people gave no answer is known; there a model answers rightly where its implicit reward
prefers the chosen response, as `evaluate` has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from allo_engine.bases_trained import AnsweringConfig
from allo_engine.checkpoints.folder import context_length
from allo_engine.data.answers import Verdict, compare, reference
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import UPLOADED, Inputs
from allo_engine.model.sequences import Group
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sampling.requests import Request, Settings
from allo_engine.sampling.transformers import TransformersSampler
from allo_engine.training.loop import Trainer
from allo_engine.training.validation import Measure

ROOM = 2
"""An answer may be so many times as long as the longest that is held out: one that goes on and on is not waited for."""


def measure_of(
    config: AnsweringConfig, held: Sequence[Group], start: Path, trainer: Trainer, report: Report, work: Path
) -> Measure | None:
    """Greedy accuracy on what is held out, where the stage's settings choose by that. `start` is the folder that the
    model was loaded from.

    Raises StageError where no response that is held out states an answer, or where devices share out the model.
    """
    if not _asked(config, held):
        return None
    if not trainer.is_whole:
        raise StageError("shared_out", _SHARED_OUT)
    return Measure("accuracy", Exam(config, held, start, trainer.model, report, work).taken)


def measure_of_pairs(
    config: AnsweringConfig, held: Sequence[Group], inputs: Inputs, trainer: Trainer, report: Report, work: Path
) -> Measure | None:
    """The same of pairs; of uploaded ones, whose answers nobody has verified, the implicit reward's accuracy."""
    if (inputs["pairs"] / UPLOADED).exists():
        return Measure("reward_accuracy") if _asked(config, held) else None
    return measure_of(config, held, inputs["model"], trainer, report, work)


def _asked(config: AnsweringConfig, held: Sequence[Group]) -> bool:
    return config.best_by == "accuracy" and bool(held)


class Exam:
    """The questions that what is held out answers, and who answers them: a model in training, as it stands."""

    def __init__(
        self,
        config: AnsweringConfig,
        held: Sequence[Group],
        start: Path,
        model: PreTrainedModel,
        report: Report,
        work: Path,
    ) -> None:
        encoder, context = Encoder.of(start, config), context_length(start)
        known = [(group.prompt, gold) for group in held if (gold := _gold(group, encoder))]
        if not known:
            raise StageError("nothing_to_validate_on", _NO_ANSWERS.format(len(held)))
        longest = max(len(group.responses[item[0]]) for group in held for item in group.items)
        most = min(config.max_response_tokens, ROOM * longest)
        self._golds = [gold for _, gold in known]
        self._requests = [
            Request(number, prompt, config.seed, min(most, context - len(prompt)))
            for number, (prompt, _) in enumerate(known)
        ]
        self._encoder, self._model, self._report, self._work = encoder, model, report, work

    def taken(self) -> float:
        """The share that is answered rightly. Ranks share out the questions; raises Stopped, on all of them."""
        right, stopped = 0, False
        own, settings = here().share(self._requests), Settings(self._encoder.ends)
        with answering(self._model):
            sampler = TransformersSampler(self._model, self._report, work=self._work)
            try:
                for number, _, response in sampler.sample(own, settings):
                    text = self._encoder.decode(response.ids)
                    right += compare(text, self._golds[number]) is Verdict.RIGHT
            except Stopped:
                stopped = True
        found = here().gathered((right, stopped))
        if any(stopped for _, stopped in found):
            raise Stopped
        return sum(right for right, _ in found) / len(self._requests)


def _gold(group: Group, encoder: Encoder) -> str | None:
    """What the first response answers that states it, of those that are learned or chosen."""
    texts = (encoder.decode(list(group.responses[item[0]])) for item in group.items)
    return next((gold for text in texts if (gold := reference({"solution": text}))), None)


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[None]:
    """Within it a model in training decodes as any other; behind it, it trains on as before."""
    attention = model.config._attn_implementation
    computed_twice = [module for module in model.modules() if module.training]
    model.eval()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        for module in computed_twice:
            module.training = True


_NO_ANSWERS = (
    "None of the {} problems that are held out has a response that states its answer: set best_by to 'loss', or have "
    "solutions say which answer they come to."
)

_SHARED_OUT = (
    "Devices share out the model in training, and then it answers no held-out problems: set best_by to 'loss', or zero "
    "to 0 where a device holds all of it."
)
