"""What each stage of a job will compute, counted on a sample of its files with the stages' own readers and packing."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from allo_engine.bases import RowsConfig
from allo_engine.bases_trained import OwnMaskConfig, TrainingConfig
from allo_engine.data.reading import fitting_groups, problems, supervised_examples, within_context
from allo_engine.data.rewriting import Rewriting
from allo_engine.estimate.counting import decoding, padded_passes, passes
from allo_engine.estimate.heldout import HeldOut
from allo_engine.estimate.loads import Decoding, Load, Passes, Place
from allo_engine.estimate.priors import GIVEN_MASK
from allo_engine.estimate.simulated import Simulated
from allo_engine.model.loading import packs
from allo_engine.model.memory import Kind
from allo_engine.model.rows import Choice, asked_bytes, rows_within, use_of
from allo_engine.model.sequences import Group, batches, rows_of, singles
from allo_engine.model.shape import Shape
from allo_engine.pipeline import MODELS, PlannedStage
from allo_engine.report import Report
from allo_engine.rounds import kind_of, round_of
from allo_engine.sampling.requests import Settings
from allo_engine.stages.reward_model import corrections
from allo_engine.training.validation import parted

EVALUATED = ("base", *MODELS)


@dataclass(frozen=True)
class Sized:
    """A model's folder, without its weights if need be, its shape, and whether its rows hold several sequences, where
    that is known."""

    folder: Path
    shape: Shape
    known: bool | None = None

    @cached_property
    def packs(self) -> bool:
        return packs(self.folder) if self.known is None else self.known


class Workload:
    """A planned job's stages as loads at one kind of worker. `rewriter` is the model that becomes the rewriter."""

    def __init__(self, data: Simulated, place: Place, model: Sized, rewriter: Sized) -> None:
        self._data, self._plan, self._files, self._priors = data, data.plan, data.files, data.priors
        self._place, self._model, self._rewriter = place, model, rewriter

    def loads(self) -> list[Load]:
        count: dict[str, Callable[[PlannedStage], Load]] = {
            "sft": self._sft,
            "sample": self._sample,
            "pair": self._pair,
            "warmup": self._warmup,
            "locate": self._locate,
            "reward_model": self._reward_model,
            "token_rewards": self._token_rewards,
            "forget": self._forget,
            "improve": self._improve,
            "evaluate": self._evaluate,
        }
        return [replace(count[stage.kind](stage), stage=stage.name) for stage in self._plan.values()]

    # stages that read the training file

    def _sft(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        file = self._files["training_file"]
        examples = supervised_examples(file.folder, self._data.encoder("sft"), config.share)
        groups = [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]
        return self._trained("sft", self._fitting(groups, config), file.scale)

    def _sample(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        prompts = [len(found.prompt) for found in self._data.answers]
        lengths = [found.lengths for found in self._data.answers]
        work = decoding(prompts, lengths, config.decoding_batch).times(self._data.scale)
        return Load(
            "sample", decoding=work, weight_bytes=self._bytes(config), served=self._place.serves(config.backend)
        )

    def _pair(self, stage: PlannedStage) -> Load:  # noqa: ARG002 - like all of these
        responses = sum(len(found.lengths) for found in self._data.answers) * self._data.scale
        return Load("pair", judged=responses, models=0)

    # stages that read pairs

    def _warmup(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        groups = self._fitting(self._data.pairs, config)
        load = self._trained("warmup", groups, self._data.pair_scale)
        return load if self._kept else replace(load, forward=(*load.forward, self._reference("warmup", groups)))

    def _improve(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        groups = self._fitting(self._data.pairs, config)
        known = self._kept and not {"forgotten", "aligned"} & stage.inputs.keys()
        reference = () if known else (self._reference("improve", groups),)
        load = self._trained("improve", groups, self._data.pair_scale)
        masks = round_of(stage.inputs.get("masks", "").split(".")[0])  # it has the entries of earlier rounds, too
        return replace(load, forward=(*load.forward, *reference), checkpoints=0, deltas=masks)

    def _locate(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        if "pairs" not in stage.inputs:
            return Load("locate", streamed=True, models=len(stage.inputs), masks=2)
        rows = rows_of(self._fitting(self._data.pairs, config), self._budget("locate", "gradient"))
        work = passes(rows).times(self._data.pair_scale)
        return Load("locate", "gradient", training=work, masks=2, weight_bytes=self._bytes(config))

    # stages that read negatives

    def _reward_model(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        encoder = self._data.encoder("reward_model")
        if "corrections_file" in self._files:
            file = self._files["corrections_file"]
            given, scale = corrections(file.folder, encoder), file.scale
        else:
            most, scale = config.max_negatives, self._data.pair_scale
            given = [replace(group, responses=group.responses[:most]) for group in self._data.negatives]
        if config.max_problems is not None and given:
            scale = min(scale, config.max_problems / len(given))
        rewriting = Rewriting(encoder)
        groups = [rewriting.scoring(key, group) for key, group in enumerate(given)]
        load = self._trained("reward_model", self._fitting(groups, config, self._rewriter), scale)
        if config.corrections is None:
            return load
        answers = [ids for group in given for ids in group.responses]  # a correction is about as long
        side_by_side = scale / config.corrections.concurrency
        return replace(load, asked=len(answers) * side_by_side, written=sum(map(len, answers)) * side_by_side)

    def _token_rewards(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        plain = self._fitting(self._data.wrong(), config)
        budget = self._budget("token_rewards", "forward")

        def scored(groups: list[Group]) -> Passes:
            return passes(rows_of(groups, budget)).times(self._data.pair_scale)

        reference = () if self._kept else (scored(plain),)
        load = Load("token_rewards", models=len(reference) + 1, weight_bytes=self._bytes(config))
        if config.source == "log_ratio":
            return replace(load, forward=(*reference, scored(plain)))
        rewriting = Rewriting(self._data.encoder("token_rewards"))
        judged = [rewriting.scoring(group.key, self._data.negatives[group.key]) for group in plain]
        judged = within_context(judged, self._rewriter.folder, Report(io.StringIO())) if judged else []
        return replace(load, forward=reference, judging=scored(judged))

    def _forget(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        groups = self._fitting(self._data.wrong(), config)
        load = self._trained("forget", groups, self._data.pair_scale)
        anew = config.loss == "npo" and self._bytes(config) < 4  # see forget.py
        reference = (self._reference("forget", groups),) if anew else ()
        return replace(load, forward=(*load.forward, *reference), checkpoints=0, deltas=1)

    # evaluation

    def _evaluate(self, stage: PlannedStage) -> Load:
        config: Any = stage.config
        encoder, budget = self._data.encoder("evaluate"), self._budget("evaluate", "forward")
        models = [name for name in stage.inputs if kind_of(name) in EVALUATED]

        def on(file: str, config: Any) -> HeldOut:
            return HeldOut(self._files[file], config, encoder, self._model.folder, budget, self._priors.length)

        load = on("validation_file", config).load(models)
        if "retention_file" in self._files:
            kept = on("retention_file", config.of_retention()).load([models[0], models[-1]])
            decoded, models_read = load.decoding.plus(kept.decoding), load.models + kept.models
            load = replace(load, decoding=decoded, forward=(*load.forward, *kept.forward), models=models_read)
        if config.judge is not None and self._files["validation_file"].format == "problems":
            file = self._files["validation_file"]
            judged = min(config.judge.problems, file.scale * len(problems(file.folder)))
            load = replace(load, asked=2 * judged / config.judge.concurrency)
        served = load.decoding.rows > 0 and self._place.serves(config.backend)
        return replace(load, served=served, weight_bytes=self._bytes(config))

    @property
    def _kept(self) -> bool:
        """Whether the start model's log-probabilities of all responses are known: sampling in float32 keeps them."""
        sample = self._plan.get("sample")
        return self._priors.kept and sample is not None and self._bytes(sample.config) == 4

    # passes

    def _fitting(self, groups: Sequence[Group], config: Any, model: Sized | None = None) -> list[Group]:
        return fitting_groups(groups, config, (model or self._model).folder, Report(io.StringIO())) if groups else []

    def _budget(self, stage: str, kind: Kind, ratio: float = 1.0) -> int:
        return self._rows(stage, kind, ratio)[0]

    def _rows(self, stage: str, kind: Kind, ratio: float) -> tuple[int, Choice | None]:
        """What the stage would find in its memory there: see model/rows.py."""
        config, place = cast(RowsConfig, self._plan[stage].config), self._place
        model = self._rewriter if stage == "reward_model" else self._model
        use = replace(use_of(config, kind, ratio), weight_bytes=self._bytes(config), device_type=place.device)
        use = replace(use, packs=model.packs)
        return rows_within(config, model.shape, use, asked_bytes(config) or place.free_bytes)

    def _bytes(self, config: Any) -> int:
        """Of a weight as it is computed with."""
        return self._place.weight_bytes(config.precision)

    def _reference(self, stage: str, groups: list[Group]) -> Passes:
        """In 16 bits the reference is computed in the rows of the first epoch (see training/loop.py)."""
        config, budget = self._plan[stage].config, self._budget(stage, self._kind(stage), self._ratio(stage))
        anew = self._bytes(config) < 4 and not _by_trl(config)
        cut = _first_epoch(groups, config) if anew else [groups]
        return passes(row for some in cut for row in rows_of(some, budget)).times(self._data.pair_scale)

    def _trained(self, stage: str, groups: list[Group], scale: float) -> Load:
        config: Any = self._plan[stage].config
        kind = self._kind(stage)
        budget, choice = self._rows(stage, kind, self._ratio(stage))
        again = config.gradient_checkpointing is True
        if choice is not None and choice.needed(groups):
            budget, again = choice.tokens, True
        groups, held = parted(groups, config.validation_share)
        if _by_trl(config):
            work, steps = padded_passes(groups, config, budget, self._place.device)
        else:
            plan = _first_epoch(groups, config)
            work, steps = passes(row for batch in plan for row in rows_of(batch, budget)), len(plan)
        validations = 1 + config.n_epochs * min(1 / config.evaluate_every, steps * scale) + (config.average > 1)
        validations += len(getattr(config, "scales", None) or ())
        asked = self._asked(config, held).times(scale * validations)
        return Load(
            stage,
            kind,
            self._ratio(stage),
            decoding=asked,
            forward=(passes(rows_of(held, budget)).times(scale * validations),) if held else (),
            training=work.times(scale * (config.n_epochs + self._locates(stage))),
            updates=steps * scale * config.n_epochs,
            checkpoints=1,
            by_trl=_by_trl(config),
            gradient_checkpointing=again,
            checkpoint_seconds=config.checkpoint_seconds,
            weight_bytes=self._bytes(config),
            moments=config.moments,
            keeps=bool(held) and config.keep == "best",
            averages=config.average if config.average > 1 else 0,
        )

    def _asked(self, config: Any, held: Sequence[Group]) -> Decoding:
        """What is answered of the problems that are held out, each time: see training/exam.py."""
        if (
            not held
            or getattr(config, "best_by", "loss") == "loss"
            or self._files["training_file"].format != "problems"
        ):
            return Decoding()
        right = [group.responses[group.items[0][0]] for group in held]
        return decoding([len(group.prompt) for group in held], [[len(ids)] for ids in right], Settings(()).rows)

    def _kind(self, stage: str) -> Kind:
        return "dense" if cast(TrainingConfig, self._plan[stage].config).train == "all" else "sparse"

    def _locates(self, stage: str) -> bool:
        """Whether a stage goes through its data once more, for a mask of its own."""
        return self._kind(stage) == "sparse" and isinstance(self._plan[stage].config, OwnMaskConfig)

    def _ratio(self, stage: str) -> float:
        """The share of all weights that a stage trains."""
        if self._kind(stage) == "dense":
            return 1.0
        config = self._plan[stage].config
        if isinstance(config, OwnMaskConfig):
            return config.mask_ratio
        if "locate" not in self._plan:
            return GIVEN_MASK
        return float(getattr(self._plan["locate"].config, f"{stage}_ratio"))


def _first_epoch(groups: Sequence[Group], config: Any) -> list[list[Group]]:
    """Its batches."""
    return [[groups[place] for place in batch] for batch in batches(groups, config.batch_size, config.seed, 0)]


def _by_trl(config: Any) -> bool:
    return getattr(config, "trainer", "allo") == "trl"
