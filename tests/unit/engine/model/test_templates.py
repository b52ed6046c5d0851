"""Chat templates: what transformers writes, and an end for those that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from allo_engine.config import PromptConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import supervised_examples
from allo_engine.model import templates
from allo_engine.model.templates import TemplateFault, names_in, rendered
from allo_engine.model.tokenizer import check_tokenizer
from allo_engine.report import StageError
from tests.tiny import CHAT, tiny_tokenizer

ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLING = "{% set all = namespace(x='aa') %}{% for n in range(60) %}{% set all.x = all.x ~ all.x %}{% endfor %}"
USER: list[dict[str, Any]] = [{"role": "user", "content": "q"}]

TEMPLATES = [
    CHAT,
    """
    {%- for message in messages %}
        {%- if loop.first and message.role != 'system' %}{{ bos_token }}{% endif %}
        {%- if message.role == 'assistant' %}
            {%- generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}
        {%- else %}
    [{{ message.role | upper }}] {{ message['content'].split()[-1:] }}
        {% endif %}
        {%- if loop.index > 3 %}{% break %}{% endif %}
    {%- endfor %}
    {%- if add_generation_prompt and mode is defined %}{{ mode }}>{% endif %}""",
    "{{ tools | tojson(indent=2) }}{{ messages | tojson }}{% if strftime_now('%Y') | int > 2000 %}!{% endif %}",
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{{ asked | length }}{{ asked[-1] }}",
    "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ messages[0]['content'][:3] }}",
]
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(min_size=1)}),
    min_size=1,
    max_size=5,
)


def outcome(render: Any) -> str | None:
    try:
        return str(render())
    except Exception:
        return None


@given(st.sampled_from(TEMPLATES), MESSAGES, st.booleans(), st.none() | st.just([{"type": "function"}]))
def test_a_conversation_is_written_as_transformers_writes_it(
    template: str, messages: list[dict[str, Any]], answering: bool, tools: Any
) -> None:
    arguments = {"bos_token": "<s>", "eos_token": "</s>", "mode": "think"}
    ours = outcome(lambda: rendered(template, messages, tools, answering, arguments))
    theirs = outcome(
        lambda: render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=answering, **arguments
        )[0][0]
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("template", "word"),
    [
        (DOUBLING, "more than 1024 MB"),
        ("{{ 'a' * 10 ** 10 }}", "more than 1024 MB"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
        ("{{ x.y.z }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "Expected an expression"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_that_fails_says_why_and_the_next_conversation_is_written(template: str, word: str) -> None:
    assert rendered(CHAT, USER, None, False, {}) == "<|user|>q<|end|>"
    for _ in range(2):
        with pytest.raises(TemplateFault, match=word):
            rendered(template, USER, None, False, {})
    assert rendered(CHAT, USER, None, False, {}) == "<|user|>q<|end|>"


def test_a_template_that_loops_is_ended_and_the_next_conversation_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes where a model is registered, and loops on some conversation of a file."""
    monkeypatch.setattr(templates, "CPU_SECONDS", 1)
    templates._renderer_of.cache_clear()
    looping = "{% if messages | length > 2 %}" + ENDLESS + "{% endif %}" + CHAT
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = looping
    tokenizer.save_pretrained(tmp_path)
    check_tokenizer(tmp_path)
    encoder = Encoder(tokenizer, PromptConfig())
    answer = {"role": "assistant", "content": "a"}
    chats = [{"messages": [*USER, answer]}, {"messages": [*USER, answer, *USER, answer]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    with pytest.raises(StageError, match="more than 1 s of CPU") as caught:
        list(supervised_examples(tmp_path, encoder))
    assert caught.value.code == "bad_template"
    assert encoder.prompt("q") == encoder.text("<|user|>q<|end|><|assistant|>")


def test_names_are_those_that_a_caller_may_give() -> None:
    assert names_in("{% set a = 1 %}{{ a }}{{ b }}{% generation %}{{ c }}{% endgeneration %}") == {"b", "c"}


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for message in messages", "cannot write a conversation"),
        ("{{ messages[5].content }}", "cannot write a conversation"),
        ("hello", "leaves out what the user says"),
        (DOUBLING, "more than 1024 MB"),
    ],
)
def test_a_model_with_a_template_of_no_use_is_refused(tmp_path: Path, template: str, word: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(StageError, match=word):
        check_tokenizer(tmp_path)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(StageError, match="cannot read its tokenizer"):
        check_tokenizer(tmp_path)
