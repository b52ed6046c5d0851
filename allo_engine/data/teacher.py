"""Corrections by a model behind an OpenAI-compatible endpoint: see asking.py.

Where an answer cannot be had, or is none (empty, cut, the wrong response again, not right where the right answer is
known), the correction stays what it was: the nearest right response.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allo_engine.data.answers import Verdict, compare, reference
from allo_engine.data.asking import Asked
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup
from allo_engine.data.rewriting import Rewriting
from allo_engine.report import Report
from allo_engine.teacher import Teacher


class Corrections:
    """Asks a teacher; `counts` says what became of the questions."""

    def __init__(self, teacher: Teacher, key: str | None, cache: Path, encoder: Encoder, report: Report) -> None:
        self._encoder, self._rewriting = encoder, Rewriting(encoder)
        self._asked = Asked(teacher, key, cache / "teacher", report, "reward_model.corrections")
        self.counts = self._asked.counts
        self.counts["unusable"] = 0

    def write(self, groups: list[NegativeGroup]) -> list[NegativeGroup]:
        """The groups with the teacher's corrections in place of their own, where they are usable.

        Raises Stopped when the report asks to stop, StageError where the endpoint refuses or is not there.
        """
        corrections = [list(group.corrections) for group in groups]
        places = [(number, index) for number, group in enumerate(groups) for index in range(len(group.responses))]
        questions = [self._rewriting.question(groups[number], index) for number, index in places]
        for (number, index), text in zip(places, self._asked.answers(questions), strict=True):
            group = groups[number]
            if text is not None and self._usable(text, group, index):
                corrections[number][index] = self._encoder.response(text)
            elif text is not None:
                self.counts["unusable"] += 1
        return [replace(group, corrections=found) for group, found in zip(groups, corrections, strict=True)]

    def metrics(self) -> dict[str, float]:
        """The counts, as a stage reports them."""
        return {f"teacher_{name}": count for name, count in self.counts.items()}

    def _usable(self, text: str, group: NegativeGroup, index: int) -> bool:
        if not text or text == self._encoder.decode(group.responses[index]).strip():
            return False
        gold = reference({"answer": group.answer, "solution": group.solution})
        return gold is None or compare(text, gold) is Verdict.RIGHT
