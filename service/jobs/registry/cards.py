"""The card of a model that a job made: what it is, what it was made of and how, and how good it was found to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from allo_engine.config import CONFIGS
from allo_engine.pipeline import MODELS
from allo_engine.rounds import kind_of, title_of
from service.jobs.lifecycle import StageStatus
from service.jobs.service import JobView
from service.jobs.tables import Job, Model, Stage

METHODS = {
    "supervised": "supervised fine-tuning",
    "dpo": "direct preference optimization",
    "allo": "ALLO ([Low-Redundant Optimization for LLM Alignment](https://arxiv.org/abs/2406.12606))",
}


def card(view: JobView, revision: str, base: Model | None) -> bytes:
    """README.md of one revision, as the Hub has it: YAML, then Markdown."""
    return ("\n".join((*_front(view.job, base), "", *_body(view, revision, base))) + "\n").encode()


def _front(job: Job, base: Model | None) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield f"base_model: {_quoted(job.model)}"
    licence = licence_of(base)
    yield f"license: {_quoted(licence)}" if licence else "license: unknown"
    yield "tags: [allo, alignment]"
    yield "---"


def _body(view: JobView, revision: str, base: Model | None) -> Iterator[str]:
    job = view.job
    yield f"# {job.fine_tuned_model or job.id}"
    yield ""
    yield f"{_quoted(job.model)} after {METHODS[job.method['type']]}; revision `{revision}` of job `{job.id}`."
    yield ""
    yield from _licence(base)
    yield from _accuracy(view)
    yield from _settings(view)
    yield from _sources(job)
    yield from _loading(job, revision)


def licence_of(model: Model | None) -> str | None:
    """The licence that a base model came with, as far as it said."""
    return ((model.origin or {}).get("license") if model is not None else None) or None


def _licence(base: Model | None) -> Iterator[str]:
    found = licence_of(base)
    yield f"The base is licensed as: {found}." if found else "The base did not say how it is licensed."
    yield ""


def _accuracy(view: JobView) -> Iterator[str]:
    figures: Mapping[str, Any] = next((stage.metrics for stage in view.stages if _evaluated(stage)), {})
    names = ["base", *(stage.name for stage in view.stages if kind_of(stage.name) in MODELS)]
    columns = _columns(figures, names)
    rows = [row for name in names if (row := _row(figures, name, title_of(name), columns))]
    if rows:
        yield "## On held-out data"
        yield ""
        yield " | ".join(("| model | accuracy | 95 % interval", *columns)) + " |"
        yield "|---" * (3 + len(columns)) + "|"
        yield from rows
        yield ""


def _columns(figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """What was found beside accuracies: title to figure."""
    ks = {int(found[1]) for key in figures if (found := re.fullmatch(r"[a-z0-9-]+_pass_at_(\d+)", key))}
    shares = {"by option": "option_accuracy", "on the retention file": "retention_accuracy"}
    more = {title: key for title, key in shares.items() if any(f"{name}_{key}" in figures for name in names)}
    return {f"pass@{k}": f"pass_at_{k}" for k in sorted(ks)} | more


def _evaluated(stage: Stage) -> bool:
    return stage.name == "evaluate" and stage.status is StageStatus.SUCCEEDED


def _row(figures: Mapping[str, Any], name: str, title: str, columns: Mapping[str, str]) -> str:
    accuracy = figures.get(f"{name}_accuracy")
    if accuracy is None:
        return ""
    low, high = (figures.get(f"{name}_accuracy_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f"{_percent(low)} – {_percent(high)}"
    more = [figures.get(f"{name}_{key}") for key in columns.values()]
    cells = (title, _percent(accuracy), interval, *("" if share is None else _percent(share) for share in more))
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _settings(view: JobView) -> Iterator[str]:
    """What differs from the published defaults, stage by stage."""
    yield "## Stages and settings"
    yield ""
    yield f"Seed {view.job.seed}. Settings that are not named have their defaults."
    yield ""
    for stage in view.stages:
        changed = _changed(stage)
        told = ", ".join(f"`{name} = {json.dumps(value, ensure_ascii=False)}`" for name, value in changed.items())
        yield f"- `{stage.name}`{': ' + told if told else ''}{''.join(f'; {one}' for one in _chosen(stage.metrics))}"
    yield ""


def _chosen(figures: Mapping[str, Any]) -> Iterator[str]:
    """Which of its checkpoints a training has as its result, where something was held out or averaged."""
    best, taken = figures.get("best_step"), figures.get("result_step")
    if figures.get("averaged"):
        yield f"the result is the mean of the last {figures['averaged']:g} checkpoints"
    elif best is not None and best == taken:
        right = figures.get("best_validation_accuracy")
        answered = "" if right is None else f", of which it answers {_percent(right)} rightly"
        which = f"behind step {best:g} of {figures['steps']:g}" if best else "that it started from"
        yield f"the result is the model {which}, the best on what was held out{answered}"
    elif best is not None:
        yield f"the result is the last step, {taken:g}; the best on what was held out is that behind step {best:g}"
    if "scale" in figures:
        yield f"of several scales {figures['scale']:g} was the best on it"


def _changed(stage: Stage) -> dict[str, Any]:
    defaults = CONFIGS[kind_of(stage.name)]().model_dump(mode="json") | {"seed": stage.config.get("seed")}
    return {name: value for name, value in stage.config.items() if defaults.get(name, value) != value}


def _sources(job: Job) -> Iterator[str]:
    yield "## Made of"
    yield ""
    yield "| source | file | bytes | sha256 |"
    yield "|---|---|---|---|"
    for source, files in sorted(job.sources.items()):
        for path, sha256, size in files:
            yield f"| {source} | {path} | {size} | `{sha256}` |"
    yield ""


def _loading(job: Job, revision: str) -> Iterator[str]:
    yield "## How to load it"
    yield ""
    yield "With `HF_ENDPOINT` set to the service's URL and a key of it in `HF_TOKEN`:"
    yield ""
    given = "" if revision == "main" else f', revision="{revision}"'
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'model = AutoModelForCausalLM.from_pretrained("jobs/{job.id}"{given})'
    yield f'tokenizer = AutoTokenizer.from_pretrained("jobs/{job.id}"{given})'
    yield "```"


def _quoted(text: str) -> str:
    """A name as a YAML scalar that is nothing else, and as Markdown that it cannot break out of."""
    return json.dumps(text, ensure_ascii=False).replace("`", "'")
