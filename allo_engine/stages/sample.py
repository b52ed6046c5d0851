"""Sampling: n responses a problem at temperature T and top-p, each with a random stream of its own.

Response j of problem i draws from Philox(seed, i, j), so which tokens it gets depends neither on the batch that it is
decoded in nor on where a run was cut and resumed; vLLM draws by its own generator, which these three seed. The tokens'
log-probabilities, which our own decoding computes anyway, are kept for the stages that take this model as their
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from allo_engine import sampling
from allo_engine.checkpoints.folder import context_length, fingerprint
from allo_engine.configs.sample import SampleConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import Inputs, problems
from allo_engine.data.records import SampledProblem, write_lines
from allo_engine.model.loading import dtype_of
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.sequences import singles
from allo_engine.ranks import here
from allo_engine.report import Report, StageError
from allo_engine.sampling import Request, Response, Settings
from allo_engine.sampling.kept import answers

KEPT = "responses.jsonl"
"""In the work folder of each rank: what it has drawn."""


def run(config: SampleConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:
    encoder = Encoder.of(inputs["model"], config)
    given = problems(inputs["problems"], config.skip_share)
    prompts = [encoder.prompt(problem.problem) for problem in given]
    context = context_length(inputs["model"])
    longest = min(config.max_prompt_tokens, context - 1)
    chosen = [number for number, prompt in enumerate(prompts) if len(prompt) <= longest]
    if len(chosen) < len(given):
        dropped = len(given) - len(chosen)
        report.message(
            f"{dropped} of {len(given)} problems are too long and were dropped.", "warn", {"dropped": dropped}
        )
    if not chosen:
        raise StageError(
            "nothing_to_train_on",
            f"All {len(given)} problems are longer than {longest} tokens: raise max_prompt_tokens or shorten them."
            if given
            else f"skip_share {config.skip_share:g} leaves no problem of the file to sample: give more, or lower it.",
        )
    requests = [
        Request(number, prompts[number], config.seed, _room(config, context, prompts[number]), range(config.n))
        for number in chosen
    ]
    settings = Settings(encoder.ends, config.temperature, config.top_p, config.decoding_batch)
    found = _sampled(config, inputs["model"], requests, settings, work, report)
    if (
        here().leads and dtype_of(config.precision) == torch.float32
    ):  # in 16 bits decoding rounds more than training moves
        cache = LogpCache(inputs.get("cache", work), work, fingerprint(inputs["model"]), config.precision)
        _keep(cache, prompts, found)
    responses = {number: [response.ids for response in drawn] for number, drawn in found.items()}
    write_lines(
        outputs / "responses" / "responses.jsonl",
        (
            SampledProblem(
                **asdict(given[number]),
                prompt_ids=prompts[number],
                responses=responses[number],
                texts=[encoder.decode(ids) for ids in responses[number]],
                finished=[ids[-1] in encoder.ends for ids in responses[number]],
            )
            for number in chosen
        ),
    )
    everything = [ids for found in responses.values() for ids in found]
    return {
        "problems": len(chosen),
        "responses": len(everything),
        "tokens": sum(map(len, everything)),
        "finished_share": sum(ids[-1] in encoder.ends for ids in everything) / len(everything),
    }


def _keep(cache: LogpCache, prompts: list[list[int]], found: dict[int, list[Response]]) -> None:
    groups = [singles(number, prompts[number], [response.ids for response in drawn]) for number, drawn in found.items()]
    logps = {
        (number, i): torch.tensor(one.logps)
        for number, drawn in found.items()
        for i, one in enumerate(drawn)
        if one.logps is not None
    }
    cache.write(groups, logps)


def _sampled(
    config: SampleConfig, folder: Path, requests: list[Request], settings: Settings, work: Path, report: Report
) -> dict[int, list[Response]]:
    """Responses by problem."""
    total, tally = config.n * len(requests), here().tally()
    opened = partial(sampling.open, folder, None, dtype_of(config.precision), report, work, config.backend)

    def tick(amount: int) -> None:
        done = tally(amount)
        report.progress(done, total)
        report.kept(done)

    found = answers(requests, settings, opened, work / KEPT, report, tick)
    report.progress(total, total)
    return found


def _room(config: SampleConfig, context: int, prompt: Sequence[int]) -> int:
    """A response's tokens at most: behind its own prompt, whatever the others'."""
    return min(config.max_response_tokens, context - len(prompt))
