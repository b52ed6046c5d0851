"""Prompts and responses as ids: what ends a response, what a chat template is given, which turns are learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from allo_engine.config import ForgetConfig, PromptConfig, SampleConfig
from allo_engine.data.prompts import Encoder, arguments_of
from allo_engine.data.reading import negatives, pairs, supervised_examples
from allo_engine.data.records import SampledProblem, ScoredGroup, write_lines
from allo_engine.report import Report, StageError
from allo_engine.stages import forget, locate, sample
from tests.tiny import CHAT, save_tiny, tiny_tokenizer
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import write_problems

END = 1
USER = {"role": "user", "content": "why?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}

THINKING = CHAT.replace(
    "<|assistant|>{%",
    "<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{%",
)
"""Qwen3's way to keep a model from thinking."""

CALLING = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def encoder(chat: str = CHAT, ends: tuple[int, ...] = (), **settings: Any) -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat
    return Encoder(tokenizer, PromptConfig(**settings), ends)


def text_of(ids: list[int]) -> str:
    return str(tiny_tokenizer().decode(ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def set_ends(folder: Path, ends: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))


# ---- ends


@pytest.mark.parametrize(("named", "ends"), [(7, {1, 7}), ([9, 1, 7], {1, 7, 9}), (None, {1})])
def test_a_response_ends_on_the_ids_of_the_generation_config_and_of_the_tokenizer(
    folder: Path, named: Any, ends: set[int]
) -> None:
    set_ends(folder, named)
    assert set(Encoder.of(folder).ends) == ends


def test_without_a_generation_config_the_tokenizer_alone_says_what_ends_a_response(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert Encoder.of(folder).ends == (END,)


def test_a_response_to_learn_from_ends_as_the_chat_template_ends_it() -> None:
    (stop,) = encoder().text("<|system|>")
    stopping = CHAT.replace("<|end|>", "<|system|>\n")
    assert encoder(stopping, (stop,)).end == stop
    assert encoder(stopping, (stop,)).response("a")[-1] == stop
    assert encoder(stopping).end == END  # what the template writes is no end of this model's
    assert encoder(stopping, (stop,), template="alpaca").end == END  # no chat template is used
    assert encoder("{{ messages[0].content }}").end == END  # it writes nothing behind an answer


def test_sampling_stops_on_every_end(folder: Path, tmp_path: Path, report: Report) -> None:
    ends = [END, *range(100, 261)]  # an untrained model draws one of so many before long
    set_ends(folder, ends)
    inputs = {"model": folder, "problems": write_problems(tmp_path / "data")}
    config = SampleConfig(n=4, temperature=1.0, top_p=1.0, max_response_tokens=40)
    sample.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    found = SampledProblem.read(tmp_path / "out" / "responses" / "responses.jsonl")
    assert any(problem.responses[0][-1] != END for problem in found)
    for ids, finished in ((i, f) for p in found for i, f in zip(p.responses, p.finished, strict=True)):
        assert not set(ids[:-1]) & set(ends)
        assert finished == (ids[-1] in ends)


def test_no_end_of_a_response_is_forgotten(folder: Path, tmp_path: Path, report: Report, stream: Lines) -> None:
    set_ends(folder, [END, 9])
    write_preferences(tmp_path / "pairs", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    located = {"model": folder, "pairs": tmp_path / "pairs"}
    locate.run(locate.LocateConfig(importance="gradient"), located, tmp_path / "located", tmp_path / "work", report)
    scored = ScoredGroup([5, 6], [[7, 8, 9]], [[0.9, 0.8, 0.1]], [[-1.0, -1.0, -1.0]])
    write_lines(tmp_path / "scores" / "scores.jsonl", [scored])
    inputs = {"model": folder, "scores": tmp_path / "scores", "masks": tmp_path / "located" / "masks"}
    metrics = forget.run(ForgetConfig(), inputs, tmp_path / "out", tmp_path / "work", report)
    assert metrics["forgotten_share"] == 0
    assert any("nothing was forgotten" in line.get("message", "") for line in stream.lines())


@given(st.text())
def test_the_pieces_of_a_text_are_its_tokens_and_no_character_is_cut(text: str) -> None:
    known = encoder()
    pieces = known.pieces(known.response(text))
    assert "".join(pieces) == f"{text}<|end|>"
    assert pieces[-1] == "<|end|>"
    assert all(len(piece) <= 1 for piece in pieces[:-1])  # a token is a byte here


def test_no_padding_token_is_invented(folder: Path, tmp_path: Path) -> None:
    found = Encoder.of(folder)
    assert found.tokenizer.pad_token_id is None
    found.tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token_id is None


# ---- arguments of the chat template


def test_a_template_that_knows_thinking_is_told_not_to_think_unless_asked() -> None:
    assert text_of(encoder(THINKING).prompt("2+2?")) == "<|user|>2+2?<|end|><|assistant|><think></think>"
    asked = encoder(THINKING, chat_template_kwargs={"enable_thinking": True})
    assert text_of(asked.prompt("2+2?")) == "<|user|>2+2?<|end|><|assistant|>"
    assert text_of(encoder(CHAT).prompt("2+2?")) == "<|user|>2+2?<|end|><|assistant|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ enable_thinking }}",
        "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{{ enable_thinking }}{% endfor %}",
        "{{ bos_token }}{% if tools %}{{ raise_exception('no') }}{% endif %}{{ enable_thinking | default(true) }}",
    ],
)
def test_a_template_shows_which_arguments_it_takes(template: str) -> None:
    assert arguments_of(template) == {"enable_thinking"}
    assert arguments_of(CHAT) == set()


def test_an_argument_that_the_template_does_not_take_is_refused_with_those_it_takes() -> None:
    with pytest.raises(StageError, match="no argument 'enable_thinkin'; it takes enable_thinking"):
        encoder(THINKING, chat_template_kwargs={"enable_thinkin": False}).prompt("2+2?")


# ---- conversations


def write_preferences(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path: Path) -> None:
    answers = [{"role": "assistant", "content": word, "weight": weight} for word, weight in (("no", 0), ("yes", 1))]
    chat = {"messages": [USER, answers[0], USER, answers[1]]}
    ((prompt, response),) = supervised_examples(write_preferences(tmp_path / "data", [chat]), encoder())
    assert text_of(prompt) == "<|user|>why?<|end|><|assistant|>no<|end|><|user|>why?<|end|><|assistant|>"
    assert text_of(response) == "yes<|end|>"


def test_system_developer_and_tool_messages_are_kept(tmp_path: Path) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": '{"sum": "1"}'},
        {"role": "assistant", "content": "one"},
    ]
    line = {"messages": messages, "tools": TOOLS}
    found = list(supervised_examples(write_preferences(tmp_path / "data", [line]), encoder(CALLING)))
    begun = "<|system|>be kind<|end|><|user|>why?<|end|><|assistant|>"
    assert text_of(found[0][0]) == begun
    assert text_of(found[0][1]) == '[add {"a": 1}]<|end|>'  # a call's arguments are an object to a template
    assert text_of(found[1][0]) == begun + '[add {"a": 1}]<|end|><|tool|>{"sum": "1"}<|end|><|assistant|>'
    assert text_of(found[1][1]) == "one<|end|>"


def test_a_prompts_and_a_responses_ids_joined_are_those_of_the_whole_conversation(tmp_path: Path) -> None:
    messages = [USER, {"role": "assistant", "content": "a b", "tool_calls": [CALL]}]
    line = {"messages": messages, "tools": TOOLS}
    ((prompt, response),) = supervised_examples(write_preferences(tmp_path / "data", [line]), encoder(CALLING))
    assert prompt + response == encoder().text('<|user|>why?<|end|><|assistant|>a b[add {"a": 1}]<|end|>')


def test_preferences_may_call_tools_too(tmp_path: Path) -> None:
    line = {
        "input": {"messages": [USER], "tools": TOOLS},
        "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}],
        "non_preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "no"}]}],
    }
    data = write_preferences(tmp_path / "data", [line])
    (group,) = pairs(data, encoder(CALLING))
    assert [text_of(list(ids)) for ids in group.responses.values()] == ['[add {"a": 1}]<|end|>', "no<|end|>"]
    assert negatives(data, encoder(CALLING))[0].problem == "why?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "role 'system'"),
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0].content + 1 }}", "refuses"),
    ],
)
def test_a_template_that_cannot_write_a_conversation_ends_in_what_to_change(template: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        encoder(template).prompt([{"role": "system", "content": "be kind"}, USER])


def test_tool_calls_that_the_template_does_not_write_are_refused() -> None:
    with pytest.raises(StageError, match="tool calls"):
        encoder(CHAT).turn([USER], {"role": "assistant", "content": "so", "tool_calls": [CALL]})
