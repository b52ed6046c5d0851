"""What evaluating models on one held-out file will compute: see the files of `evaluating`, whose work is counted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allo_engine.checkpoints.folder import context_length
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import fitting_groups, pairs, problems, supervised_examples
from allo_engine.estimate.counting import decoding, passes
from allo_engine.estimate.excerpt import Excerpt
from allo_engine.estimate.loads import Decoding, Load, Passes
from allo_engine.estimate.priors import stretched
from allo_engine.evaluating.options import option_groups
from allo_engine.model.sequences import rows_of, singles
from allo_engine.report import Report


class HeldOut:
    """A file as the stage would read it with `config`: in rows of `budget` tokens, answers `length` times as long as
    the file's solutions.
    """

    def __init__(self, file: Excerpt, config: Any, encoder: Encoder, folder: Path, budget: int, length: float) -> None:
        self._file, self._config, self._encoder, self._folder = file, config, encoder, folder
        self._budget, self._length = budget, length

    def load(self, models: Sequence[str]) -> Load:
        """Of so many models, by their names in the report."""
        if self._file.format == "problems":
            return self._answered(models)
        if self._file.format == "preferences":
            groups = pairs(self._file.folder, self._encoder)
            models = ["reference", *models]
        else:
            examples = supervised_examples(self._file.folder, self._encoder)
            groups = [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]
        fitting = fitting_groups(groups, self._config, self._folder, Report(io.StringIO())) if groups else []
        work = passes(rows_of(fitting, self._budget)).times(self._file.scale)
        return Load("evaluate", forward=(work,) * len(models), models=len(models))

    def _answered(self, models: Sequence[str]) -> Load:
        options = self._options().times(self._file.scale)
        times = 1 + (self._config.samples > 0) + (options.rows > 0)
        return Load(
            "evaluate",
            decoding=self._decoded(models).times(self._file.scale),
            forward=(options,) * len(models),
            models=len(models) * times,
        )

    def _decoded(self, models: Sequence[str]) -> Decoding:
        """Greedy and sampled answers; a base model that is yet to be fine-tuned does not end."""
        given, most = problems(self._file.folder), self._config.max_response_tokens
        prompts = [len(self._encoder.prompt(problem.problem)) for problem in given]
        solutions = [stretched(self._encoder.response(problem.solution), self._length) for problem in given]
        ended, endless = [[min(len(ids), most)] for ids in solutions], [[most]] * len(given)
        total = Decoding()
        for name in models:
            lengths = endless if name == "base" and "sft" in models else ended
            for samples in filter(None, (1, self._config.samples)):
                drawn = [own * samples for own in lengths]
                total = total.plus(decoding(prompts, drawn, self._config.decoding_batch))
        return total

    def _options(self) -> Passes:
        """The options of problems that list them."""
        asked = [
            (number, self._encoder.prompt(problem.problem), problem)
            for number, problem in enumerate(problems(self._file.folder))
        ]
        groups, _ = option_groups(self._config, self._encoder, context_length(self._folder), asked)
        return passes(rows_of(groups, self._budget))
