"""Lines as other tools have them, made lines of our four formats. The engine knows those alone.

Each takes a line whose fields were checked, by their first names and without null, and gives a line of a format; what
it cannot tell it refuses with `BadLine`. What comes out is checked once more, as a line of its format.

Sources: GSM8K (arXiv 2110.14168), TRL's dataset formats (huggingface.co/docs/trl/dataset_formats), Stanford Alpaca,
Dolly, and ShareGPT as axolotl and LLaMA-Factory read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.datasets.checks import Fault, kind, said
from service.datasets.parsing import BadLine

Line = Mapping[str, Any]
Messages = list[dict[str, Any]]


def gsm8k_answer(solution: str) -> str:
    """What a solution of GSM8K ends in, as "#### 72"; empty where it does not."""
    _, mark, answer = solution.rpartition("####")
    answer = answer.strip()
    return answer if mark and "\n" not in answer else ""


def from_gsm8k(line: Line) -> dict[str, Any]:
    """{question, answer} → problems. The solution keeps its last line, which the engine reads answers from."""
    answer = gsm8k_answer(line["answer"])
    if not answer:
        raise BadLine("names no answer on its last line", "the solution, and then a line such as '#### 72'", "answer")
    return {"problem": line["question"], "solution": line["answer"], "answer": answer}


def from_alpaca(line: Line) -> dict[str, Any]:
    """{instruction, input?, output} → problems."""
    more = line.get("input", "")
    return {
        "problem": f"{line['instruction']}\n\n{more}" if more.strip() else line["instruction"],
        "solution": line["output"],
    }


def from_completion(line: Line) -> dict[str, Any]:
    """TRL's {prompt, completion} of texts → problems."""
    return {"problem": line["prompt"], "solution": line["completion"]}


def from_conversational_completion(line: Line) -> dict[str, Any]:
    """The same of messages → chats. As in TRL the completion alone is learned from."""
    before = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in _messages(line)]
    completion = line["completion"]
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    return {"messages": [*before, *after], **_kept(line, "tools")}


def from_questions(line: Line) -> dict[str, Any]:
    """{question, chosen, rejected, system?} → preferences, as in Orca's pairs."""
    prompt: Any = line["question"]
    if line.get("system", "").strip():
        prompt = [{"role": "system", "content": line["system"]}, {"role": "user", "content": prompt}]
    return {"prompt": prompt, **_kept(line, "chosen", "rejected", "solution")}


def from_implicit_prompt(line: Line) -> dict[str, Any]:
    """TRL's {chosen, rejected} → preferences. The prompt is what both begin with."""
    chosen, rejected = line["chosen"], line["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadLine(f"is {kind(rejected)}, and chosen is {kind(chosen)}", "texts for both, or messages", "rejected")
    if isinstance(chosen, str):
        prompt, first, second = _told_apart(chosen, rejected)
    else:
        prompt, first, second = _parted(chosen, rejected)
    return {"prompt": prompt, "chosen": first, "rejected": second, **_kept(line, "solution", "tools")}


def from_sharegpt(line: Line) -> dict[str, Any]:
    """{conversations: [{from, value}], system?} → chats."""
    before = [{"role": "system", "content": line["system"]}] if line.get("system", "").strip() else []
    return {"messages": [*before, *map(_turn, line["conversations"])]}


def turns(value: Any) -> Iterator[Fault]:
    """A conversation as ShareGPT has it; {role, content} does as well."""
    right = '{"from": "human" or "gpt", "value": …}'
    if not isinstance(value, list) or not value:
        yield Fault("", "is an empty list" if value == [] else f"is {kind(value)}", f"a list of turns, each {right}")
        return
    for place, turn in enumerate(value):
        if not isinstance(turn, dict):
            yield Fault(f"[{place}]", f"is {kind(turn)}", right)
            continue
        name = next((name for name in ("from", "role") if name in turn), None)
        if name is None:
            yield Fault(f"[{place}].from", "is missing", "'human' or 'gpt'")
        elif not isinstance(turn[name], str) or turn[name].lower() not in _ROLES:
            fix = "'human', 'gpt' or 'system'; calls of tools are given in {messages}, as OpenAI has them"
            yield Fault(f"[{place}].{name}", f"is {said(turn[name])}", fix)
        if "value" not in turn and "content" not in turn:
            yield Fault(f"[{place}].value", "is missing", "the turn's text")


_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}


def _turn(turn: Line) -> dict[str, Any]:
    role = _ROLES[str(turn["from"] if "from" in turn else turn["role"]).lower()]
    return {"role": role, "content": turn["value"] if "value" in turn else turn["content"], **_kept(turn, "weight")}


def _messages(line: Line) -> Messages:
    prompt = line["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _kept(line: Line, *names: str) -> dict[str, Any]:
    return {name: line[name] for name in names if line.get(name) is not None}


def _parted(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The messages that both begin with, and the answers in which they part."""
    shared = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        raise BadLine("does not differ from chosen in any message", "another answer to the same prompt", "rejected")
    if not shared:
        raise BadLine("is missing, and chosen and rejected begin with different messages", "a field 'prompt'", "prompt")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) > shared + 1:
            wrong = f"goes on for {len(messages) - shared} messages behind what it shares with the other"
            raise BadLine(wrong, "one answer, in which the two differ", name)
    return chosen[:shared], chosen[shared:], rejected[shared:]


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _told_apart(chosen: str, rejected: str) -> tuple[Any, Any, Any]:
    """Prompt and answers of two texts. A dialogue of Anthropic's hh-rlhf becomes messages; other texts are cut behind
    the last space that both have, so that no word is cut."""
    if _SPEAKER.match(chosen) and _SPEAKER.match(rejected):
        return _parted(_dialogue(chosen), _dialogue(rejected))
    shared = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    cut = max(chosen.rfind(" ", 0, shared), chosen.rfind("\n", 0, shared)) + 1
    prompt, first, second = chosen[:cut], chosen[cut:], rejected[cut:]
    if not prompt.strip():
        raise BadLine("is missing, and chosen and rejected begin with nothing in common", "a field 'prompt'", "prompt")
    return prompt, first, second


def _dialogue(text: str) -> Messages:
    _, *parts = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": words.strip()}
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]
