"""lm-evaluation-harness as an evaluator of a job's models (https://github.com/EleutherAI/lm-evaluation-harness).

Tasks are files in a folder that the worker's operator names: they may hold code, so a job chooses among their names and
gives nothing of its own to them. The harness asks a plain transformers model, a question a row, as it does everywhere:
its figures are those that others publish, not the quickest to have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from allo_engine.evaluating.bench import Bench, Candidate, Line
from allo_engine.harness import HARNESS_TASKS, Harness
from allo_engine.report import StageError, Tick

SETTING = "evaluate.harness"


def on_harness(bench: Bench) -> Callable[[Candidate, Tick], Line]:
    """Raises StageError where this worker cannot put models to the tasks. Every rank puts them to all: nothing is
    shared out."""
    asked = bench.config.harness
    assert asked is not None
    tasks = _tasks(asked)

    def evaluate(candidate: Candidate, tick: Tick) -> Line:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model = candidate.plain(bench.config)
        model.register_forward_pre_hook(lambda *_: tick(0))  # a sign of life, and where a stage that must stop does so
        tokenizer = AutoTokenizer.from_pretrained(bench.base, local_files_only=True)
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=bench.config.decoding_batch),
            tasks=list(asked.tasks),
            task_manager=tasks,
            limit=asked.limit,
            num_fewshot=asked.fewshot,
            apply_chat_template=asked.chat_template,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=bench.config.seed,
            numpy_random_seed=bench.config.seed,
            torch_random_seed=bench.config.seed,
            fewshot_random_seed=bench.config.seed,
        )
        return {"harness": {task: _figures(metrics) for task, metrics in found["results"].items()}}

    return evaluate


def _tasks(asked: Harness) -> Any:
    """The index of the worker's tasks, in which all that is asked for was found."""
    folder = os.environ.get(HARNESS_TASKS, "")
    if not folder or not Path(folder).is_dir():
        raise StageError(
            "no_harness_tasks",
            f"This worker has no tasks for {SETTING}: set {HARNESS_TASKS} in its environment to the folder of their "
            "YAML files, or leave the setting out.",
        )
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise StageError(
            "no_harness", f"This worker has no lm-evaluation-harness for {SETTING}: pip install '.[eval]' there."
        ) from None
    tasks = TaskManager(include_path=folder, include_defaults=False)
    missing = [name for name in asked.tasks if name not in tasks.all_tasks]
    if missing:
        raise StageError(
            "unknown_task",
            f"{SETTING}.tasks names {', '.join(missing)}, which this worker's folder of tasks has not; it has "
            f"{', '.join(tasks.all_tasks[:50]) or 'none'}.",
        )
    return tasks


def _figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The harness's 'acc,none' and 'acc_stderr,none' as acc and acc_stderr; another filter than none is told."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        name, _, chosen = key.partition(",")
        if isinstance(value, int | float) and chosen:
            found[name if chosen == "none" else f"{name}_{chosen}"] = value
    return found
