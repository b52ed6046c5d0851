"""Prompts and responses as token ids: templates, the ends of responses, and texts of ids."""

from __future__ import annotations

import functools

from transformers import PreTrainedTokenizerBase

from allo_engine.report import StageError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
"""The published template of ALLO's QA and maths runs."""

Prompt = str | list[dict[str, str]]
"""A problem's text, or the messages of a conversation."""


class Encoder:
    """Text to token ids. A prompt's and a response's ids are made apart and joined as ids, never as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> None:
        self.tokenizer = tokenizer
        self._template = self._resolve(template)

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

    def prompt(self, prompt: Prompt) -> list[int]:
        """A prompt's ids, the special tokens that begin a sequence included."""
        if isinstance(prompt, list) or self._template == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return self._chat(messages)
        return self.text(self._template.replace("{problem}", prompt), begin=True)

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        if not self.tokenizer.chat_template:
            raise StageError("bad_template", "The file holds conversations and the model has no chat template.")
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.text(str(text))  # the template writes the special tokens itself

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

    @property
    def end(self) -> int:
        """The id that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def response(self, text: str) -> list[int]:
        """A response's ids with the end of sequence."""
        return [*self.text(text), self.end]
