"""vLLM answers, the real one on a CPU: OpenAI's own client, a base and a job's sparse checkpoint over it in place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from allo_engine.answering.questions import Question
from allo_engine.data.prompts import Encoder
from tests.integration.worker.house import alive
from tests.integration.worker.town import ALIGNED, HELLO, Town, asked, opened, served, suspended
from tests.scale.conftest import HIDDEN
from tests.tiny import save_tiny
from tests.waiting import PATIENCE, until
from worker import turns

LONG: Any = [{"role": "user", "content": "What is there to be said of a long question, of which much is kept? " * 2}]
"""Several of the blocks that vLLM keeps of a prompt."""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with opened(tmp_path_factory.mktemp("town"), "vllm", hidden=HIDDEN) as town:
        yield town


@pytest.fixture
def client(town: Town) -> Iterator[OpenAI]:
    with town.client() as client:
        until(lambda: served(client))
        yield client


def own(town: Town, model: str, messages: Any, tokens: int) -> str:
    """What transformers answers."""
    encoder, plain = Encoder.of(town.folders[model]), AutoModelForCausalLM.from_pretrained(town.folders[model])
    prompt = encoder.prompt(messages)
    ids = plain.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)[0, len(prompt) :]
    return encoder.decode(ids.tolist())


def told(client: OpenAI, model: str, messages: Any, tokens: int = 40) -> str:
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, temperature=0)
    return answer.choices[0].message.content or ""


def test_it_is_vllm_that_answers(town: Town, client: OpenAI) -> None:
    process = town.model_process()
    assert process is not None
    assert any("vllm" in place.path for place in process.memory_maps())


def test_greedy_answers_are_transformers_own_and_no_model_reads_what_another_computed_of_the_same_prompt(
    town: Town, client: OpenAI
) -> None:
    for messages in (HELLO, LONG):
        wanted = {model: own(town, model, messages, 40) for model in ("tiny", ALIGNED)}
        assert wanted["tiny"] != wanted[ALIGNED]
        for model in ("tiny", "tiny", ALIGNED, ALIGNED, "tiny", ALIGNED):
            assert told(client, model, messages) == wanted[model]


def test_two_models_asked_at_once_by_several_stream_each_its_own_answer(town: Town, client: OpenAI) -> None:
    def streamed(model: str) -> str:
        chunks = asked(client, model, 60, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(streamed, ["tiny", ALIGNED, "tiny", "tiny", ALIGNED, "tiny"]))
    wanted = {model: town.generated(model, 60) for model in ("tiny", ALIGNED)}
    assert answers == [wanted[model] for model in ("tiny", ALIGNED, "tiny", "tiny", ALIGNED, "tiny")]


def test_the_same_seed_gives_the_same_answers_whoever_is_answered_beside(client: OpenAI) -> None:
    request: Any = {"model": "tiny", "prompt": "Once", "max_tokens": 20, "n": 3, "seed": 5, "top_p": 0.9}

    def texts(seed: int) -> list[str]:
        return [choice.text for choice in client.completions.create(**request | {"seed": seed}).choices]

    first = texts(5)
    with ThreadPoolExecutor() as pool:
        again = list(pool.map(texts, [5, 6, 5, 7]))
    assert len(set(first)) == 3
    assert again[0] == again[2] == first
    assert first not in (again[1], again[3])


def test_a_stop_is_no_part_of_the_answer_and_others_go_on(client: OpenAI) -> None:
    whole = told(client, "tiny", HELLO)
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(told, client, "tiny", HELLO)
        stopped = asked(client, "tiny", stop=[whole[6:9]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(whole[6:9])], "stop")
    assert beside.result() == whole


def test_one_who_goes_away_frees_what_was_held_for_them(town: Town, client: OpenAI) -> None:
    """Another model is shown only once nothing of this one's is under way, and vLLM has let go of all blocks."""
    with town.client() as leaving:
        stream = asked(leaving, "tiny", 490, n=8, stream=True)
        next(iter(stream))
        with suspended(town):
            stream.close()
            until(lambda: town.kept() == 0)
    assert told(client, ALIGNED, HELLO) == town.generated(ALIGNED, 40)


def test_training_comes_first_and_leaves_no_process_of_vllm(town: Town, client: OpenAI) -> None:
    """The last one: the others need the model."""
    process = town.model_process()
    assert process is not None
    family = [process, *process.children(recursive=True)]
    stream = asked(client, "tiny", 490, n=8, stream=True)
    next(iter(stream))
    job = town.house.submit()
    town.house.dispatch()
    with turns.training(town.house.settings.data_dir, PATIENCE):
        assert not any(alive(member.pid) for member in family)
    town.house.cancel(job)


AUTO_ON_A_GPU = """
import sys
from pathlib import Path
import allo_engine.answering.__main__ as program
program.chosen = lambda backend: "vllm"
program.main(Path(sys.argv[1]), "auto")
"""


def test_where_vllm_cannot_serve_the_model_the_engine_answers_in_the_same_process(tmp_path: Path) -> None:
    """Heads of 8 have no kernel there. What was asked while it tried is not lost."""
    save_tiny(tmp_path / "base")
    question = Question("q", None, HELLO, None, 8, 8, 0.0, 1.0, 1, 0, [])
    command = [sys.executable, "-c", AUTO_ON_A_GPU, str(tmp_path / "base")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(question)) + "\n")
        process.stdin.flush()
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["type"] != "done":
            lines.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert lines[0] == {"type": "ready", "backend": "transformers"}
    encoder = Encoder.of(tmp_path / "base")
    plain, prompt = AutoModelForCausalLM.from_pretrained(tmp_path / "base"), encoder.prompt(HELLO)
    ids = plain.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    assert "".join(line.get("text", "") for line in lines) == encoder.decode(ids.tolist())
