"""The rewriting task of the token-level reward (arXiv 2401.06081): correct a wrong response with minimal edits.

A sequence is  problem, reference solution | prediction, instruction | text , where `text` is the correction when the
rewriter is trained and the prediction itself when its tokens are scored. The prediction's ids are those that the model
sampled. A problem's predictions share the part before the first bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from allo_engine.data.prompts import Encoder
from allo_engine.data.records import Ids, NegativeGroup
from allo_engine.model.sequences import Group, singles

PROBLEM = "Problem:\n{problem}\n\nCorrect solution:\n{solution}\n\nPrediction:\n"
INSTRUCTION = "\n\nThe prediction, modified as little as possible to be correct:\n"


class Rewriting:
    """Builds the rewriting task's sequences with one model's tokenizer."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._instruction = encoder.text(INSTRUCTION)

    def training(self, key: int, group: NegativeGroup) -> Group:
        """Each prediction with its correction: what the rewriter learns to write."""
        return self._group(key, group, group.corrections)

    def question(self, group: NegativeGroup, index: int) -> str:
        """The task as a text, for a model that answers in text: response `index` to be corrected."""
        problem = PROBLEM.replace("{problem}", group.problem).replace("{solution}", group.solution)
        return f"{problem}{self._encoder.decode(group.responses[index])}{INSTRUCTION}"

    def scoring(self, key: int, group: NegativeGroup) -> Group:
        """Each prediction with itself: how far the rewriter would keep each of its tokens."""
        return self._group(key, group, group.responses)

    def _group(self, key: int, group: NegativeGroup, texts: Iterable[Sequence[int]]) -> Group:
        text = PROBLEM.replace("{problem}", group.problem).replace("{solution}", group.solution)
        contexts = [[*self._without_end(ids), *self._instruction] for ids in group.responses]
        sequences = [[*context, *ids] for context, ids in zip(contexts, texts, strict=True)]
        return singles(key, self._encoder.text(text, begin=True), sequences, [len(context) for context in contexts])

    def _without_end(self, ids: Ids) -> Ids:
        return ids[:-1] if ids[-1] in self._encoder.ends else ids
