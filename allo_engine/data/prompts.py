"""Prompts and responses as token ids: templates, the ends of responses, and texts of ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from allo_engine.bases import PromptConfig
from allo_engine.checkpoints.folder import ends_of
from allo_engine.data.messages import Message, Prompt, as_messages, content_of, for_template, lost_message
from allo_engine.model.templates import TemplateFault, names_in, rendered
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import StageError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
"""The published template of ALLO's QA and maths runs."""

OFF = {"enable_thinking": False}
"""Arguments that a chat template which knows them gets unless the settings say otherwise: a model that thinks aloud
runs into its token limit before it answers."""


class Encoder:
    """Text to token ids. A prompt's and a response's ids are made apart and joined as ids, never as text.

    `ends` are all ids that end a response, in no order that means anything; `end` is the one that a response to learn
    from is ended with.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig | None = None, ends: tuple[int, ...] = ()
    ) -> None:
        config = config or PromptConfig()
        self.tokenizer = tokenizer
        self.ends = tuple(dict.fromkeys([int(tokenizer.eos_token_id), *ends]))
        self._template = self._resolve(config.template)
        self._given = config.chat_template_kwargs

    @classmethod
    def of(cls, folder: Path, config: PromptConfig | None = None) -> Self:
        """The encoder of a model's folder: its tokenizer, with the ends that its generation_config.json names."""
        return cls(load_tokenizer(folder), config, ends_of(folder))

    def _resolve(self, template: str) -> str:
        if template == "auto":
            template = "chat" if self.tokenizer.chat_template else "alpaca"
        if template == "chat":
            if not self.tokenizer.chat_template:
                raise StageError(
                    "bad_template",
                    "The model has no chat template: set template to 'alpaca' or to a text with {problem}.",
                )
            return template
        template = ALPACA if template == "alpaca" else template
        if "{problem}" not in template:
            raise StageError("bad_template", "The template must hold {problem}, where the problem's text goes.")
        return template

    def prompt(self, prompt: Prompt, tools: list[Any] | None = None) -> list[int]:
        """A prompt's ids, the special tokens that begin a sequence included. `tools` are a conversation's, as OpenAI
        describes them."""
        if isinstance(prompt, list) or self._template == "chat":
            return self.text(self._conversation(as_messages(prompt), tools, answering=True))  # special tokens and all
        return self.text(self._template.replace("{problem}", prompt), begin=True)

    def turn(self, prompt: Prompt, answer: str | Message, tools: list[Any] | None = None) -> list[int]:
        """The ids of the assistant's `answer` to a prompt, with the end: its content, or where it calls tools what the
        chat template writes for it."""
        content = answer if isinstance(answer, str) else content_of(answer)
        if isinstance(answer, str) or not answer.get("tool_calls"):
            return self.response(content)
        before = self._conversation(as_messages(prompt), tools, answering=True)
        after = self._conversation([*as_messages(prompt), answer], tools, answering=False)
        ids = self.text(after.removeprefix(before)) if after.startswith(before) else []
        place = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        if not ids[:place] or ids[:place] == self.text(content):
            raise StageError("bad_template", "The file holds tool calls, which the model's chat template cannot write.")
        return [*ids[:place], self.end]

    def _conversation(self, messages: list[Message], tools: list[Any] | None, answering: bool) -> str:
        """A conversation as the chat template writes it, up to where the assistant answers if it is `answering`."""
        if not self.tokenizer.chat_template:
            raise StageError("bad_template", "These are conversations, and the model has no chat template.")
        template = self.tokenizer.get_chat_template(tools=tools)
        given = [for_template(message, "developer" in template) for message in messages]
        arguments = {**self.tokenizer.special_tokens_map, **self._arguments}
        try:
            text = rendered(template, given, tools, answering, arguments)
        except TemplateFault as error:
            raise StageError("bad_template", f"The model's chat template refuses a conversation: {error}") from None
        lost = lost_message(given, text)
        if lost:
            raise StageError(
                "bad_template",
                f"The model's chat template leaves out messages of role {lost['role']!r}: leave them out, "
                "or use a model whose template writes them.",
            )
        return text

    @functools.cached_property
    def _arguments(self) -> Mapping[str, Any]:
        """What the chat template is given beside the conversation."""
        known = arguments_of(self.tokenizer.get_chat_template())
        for name in self._given:
            if name not in known:
                names = ", ".join(sorted(known)) or "none"
                raise StageError(
                    "bad_template", f"The model's chat template takes no argument {name!r}; it takes {names}."
                )
        return {name: value for name, value in OFF.items() if name in known} | dict(self._given)

    def text(self, text: str, begin: bool = False) -> list[int]:
        """A text's ids; with `begin`, behind the tokens that the model's sequences begin with (BOS, if it has one)."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._beginning + ids if begin else ids

    @functools.cached_property
    def _beginning(self) -> list[int]:
        wrapped: list[int] = self.tokenizer("x")["input_ids"]
        return [wrapped[0]] if wrapped[0] == self.tokenizer.bos_token_id else []

    def decode(self, ids: list[int]) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each id, special tokens too; together they are the text. A character whose bytes several tokens
        share stands with the last of them."""
        found, told = [], ""
        for end in range(1, len(ids) + 1):
            text = str(self.tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
            whole = end == len(ids) or not text.endswith("\ufffd")
            found.append(text[len(told) :] if whole else "")
            told = text if whole else told
        return found

    @functools.cached_property
    def end(self) -> int:
        """The id that ends a response to learn from: with a chat template the end that the template itself writes
        behind an answer, else the tokenizer's end of sequence."""
        if self._template != "chat":
            return self.ends[0]
        asked: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        behind = self._conversation(asked, None, answering=False).rpartition("answer")[2]
        return next((token for token in self.text(behind) if token in self.ends), self.ends[0])

    def response(self, text: str) -> list[int]:
        """A response's ids with the end."""
        return [*self.text(text), self.end]


def arguments_of(template: str) -> set[str]:
    """The variables that a chat template reads and that are for its caller to give."""
    try:
        return names_in(template) - _FROM_TRANSFORMERS
    except TemplateFault as error:
        raise StageError("bad_template", f"The model's chat template is broken: {error}") from None


_FROM_TRANSFORMERS = {
    *("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"),
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
}
"""What transformers gives to every chat template."""
