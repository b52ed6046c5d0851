"""A model's tokenizer, and whether it and its chat template can be used. Free of torch."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from allo_engine.model.templates import TemplateFault, rendered
from allo_engine.report import StageError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder. Raises StageError "bad_model" where it names no end."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise StageError("bad_model", "The model's tokenizer names no end-of-sequence token: add eos_token to it.")
    return tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raises StageError "bad_model" where a model has no tokenizer that can be used, or a chat template that cannot
    write a question and its answer."""
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError("bad_model", f"transformers cannot read its tokenizer: {reason:.200}") from None
    if not tokenizer.chat_template:
        return
    question = "What is 6 times 7?"
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": "42"}]
    try:
        template = tokenizer.get_chat_template()
        for messages in (asked[:1], asked):
            text = rendered(template, messages, None, len(messages) == 1, tokenizer.special_tokens_map)
            if question not in text:
                raise TemplateFault("it leaves out what the user says")
    except (TemplateFault, ValueError) as error:
        raise StageError("bad_model", f"Its chat template cannot write a conversation: {error}") from None
