"""vLLM's engine in a process of its own: python -m allo_engine.sampling.vllm_engine PARENT SAYS PLAN

It loads the model that PLAN names and says so on the file descriptor SAYS, one JSON object a line: {"ready": version}.
Then, for each line of its standard input (requests and settings), {"finished": [number, sample, ids, logps]} a
response, as they end, and {"done": peak}, the most bytes of memory that it has held; as its last word {"error": …},
where it cannot go on. It dies with the process PARENT that started it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from allo_engine.held import peak_bytes
from allo_engine.model.memory import available_bytes
from allo_engine.model.served import BLOCK, SHARE
from allo_engine.orphans import die_with

AHEAD = 2
"""Requests that are with the engine, in multiples of what it decodes at once: the next are there when one ends."""

Line = dict[str, Any]


def main(arguments: list[str]) -> int:
    parent, says, plan = int(arguments[0]), int(arguments[1]), json.loads(arguments[2])
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # who is asked to stop is the stage
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(says, "w", encoding="utf-8") as stream:

        def say(line: Line) -> None:
            stream.write(json.dumps(line) + "\n")
            stream.flush()

        try:
            version, engine = started(**plan)
            say({"ready": version})
            for line in sys.stdin:
                answer(engine, json.loads(line), say)
                say({"done": peak_bytes()})
        except Exception as error:
            traceback.print_exc()
            say({"error": str(error).strip().rstrip(".")[:1000] or type(error).__name__})
            return 1
    return 0


def started(
    folder: str, dtype: str, length: int, rows: int, most_cache: int | None = None, **more: Any
) -> tuple[str, Any]:
    """vLLM's version, and its engine with a model: `length` tokens are what a prompt and its response have at most, −1
    what the model reads and the cache holds. `most_cache` bytes of keys and values are what a device gives it at most;
    None: what is left of SHARE.
    """
    from vllm import __version__
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=folder,
        dtype=dtype,
        max_model_len=length,
        max_num_seqs=rows,
        skip_tokenizer_init=True,
        generation_config="vllm",  # what the model's folder would have of penalties and ends is not asked for
        enable_prefix_caching=True,
        disable_log_stats=True,
        **_on_this_device(),
        **more,
    )
    config = arguments.create_engine_config()
    bounded = most_cache is not None or not torch.cuda.is_available()
    if bounded and config.cache_config.kv_cache_memory_bytes is None:
        config.cache_config.kv_cache_memory_bytes = min(_cache_bytes(config), most_cache or sys.maxsize)
    return __version__, LLMEngine.from_vllm_config(config, disable_log_stats=True)


def _on_this_device() -> dict[str, Any]:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return {"gpu_memory_utilization": SHARE * free / total}
    return {"enforce_eager": True, "block_size": BLOCK}  # on a CPU compiling takes longer than it saves


def _cache_bytes(config: Any) -> int:
    """What all rows need at their longest, one more for prompts that wait, or what is free beside the weights."""
    model, parallel = config.model_config, config.parallel_config
    heads = model.get_num_kv_heads(parallel) * model.get_num_layers(parallel)
    token_bytes = 2 * heads * model.get_head_size() * model.dtype.itemsize
    blocks = -(-model.max_model_len // BLOCK) * (config.scheduler_config.max_num_seqs + 1)
    free = available_bytes("cuda" if torch.cuda.is_available() else "cpu")
    return int(min(blocks * BLOCK * token_bytes, SHARE * free / 2))


def answer(engine: Any, asked: Line, say: Callable[[Line], None]) -> None:
    """Say each response as it ends."""
    waiting = _responses(asked["requests"], asked["settings"], asked["logps"])
    while True:
        room = AHEAD * asked["settings"]["rows"] - engine.get_num_unfinished_requests()
        for name, prompt, how in itertools.islice(waiting, max(room, 0)):
            engine.add_request(name, {"prompt_token_ids": prompt}, how)
        if not engine.has_unfinished_requests():
            return
        for output in engine.step():
            if output.finished:
                say({"finished": _finished(output)})


def _responses(requests: list[Line], settings: Line, logps: bool) -> Iterator[tuple[str, list[int], Any]]:
    """Every response is a request of its own: it has its own seed, ends by itself, and is not asked for again. Its
    prompt's blocks are in the cache when another response to it comes."""
    for request in requests:
        for sample, seed in request["samples"]:
            yield (
                f"{request['number']}/{sample}",
                request["prompt"],
                drawn(settings, seed, request["max_tokens"], logps),
            )


def drawn(settings: Line, seed: int, max_tokens: int, logps: bool = False, growing: bool = False) -> Any:
    """How vLLM draws a response; `growing`: it gives new tokens as they come, not all of them at their end."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        seed=seed if settings["temperature"] else None,
        max_tokens=max_tokens,
        stop_token_ids=list(settings["ends"]),
        ignore_eos=True,  # the ends are those that are named, all of them
        detokenize=False,
        logprobs=0 if logps else None,  # 0: the chosen token's alone
        output_kind=RequestOutputKind.DELTA if growing else RequestOutputKind.FINAL_ONLY,
    )


def _finished(output: Any) -> list[Any]:
    number, sample = map(int, output.request_id.split("/"))
    ids, found = list(output.outputs[0].token_ids), output.outputs[0].logprobs
    logps = found and [by_token[token].logprob for token, by_token in zip(ids, found, strict=True)]
    return [number, sample, ids, logps]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
