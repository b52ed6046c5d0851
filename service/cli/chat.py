"""`allo chat`: talk to models, one of them or several side by side, as their answers grow."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.terminal import CommandError, out, shown
from service.client import Client, ClientError

_EPILOG = """\
examples:
  allo chat smollm2                                   talk to a base model
  allo chat ftjob-1:base ftjob-1:sft ftjob-1          what a job made of it, side by side
  allo chat smollm2 ft:smollm2:mine:0a1b2c3d --temperature 0
  allo chat ftjob-1 --prompt "What is 6 times 7?"     one answer, for scripts; --json for programs

MODEL is a model's name, a job, which means its result, or JOB:base, JOB:sft, JOB:warmup, JOB:forget, JOB:improve.
Ctrl-C stops an answer, Ctrl-D ends. /new begins a new conversation. Workers answer while they have nothing to train.
"""

_SIDE_BY_SIDE = 34
"""Columns that an answer wants at least to stand beside another."""

_STOPPED = "[stopped]"

Json = dict[str, Any]


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "chat", "talk to models, several side by side", _EPILOG, _chat)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a model, or a job's: JOB or JOB:STAGE")
    parser.add_argument("--prompt", metavar="TEXT", help="ask this alone, and end")
    parser.add_argument("--system", metavar="TEXT", help="what stands before the conversation")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of an answer at most (4096)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token (1)")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens of this share (1)")
    parser.add_argument("--seed", type=int, help="the same answers again")


@dataclass
class Talk:
    """A conversation with one model."""

    name: str
    model: str
    said: list[Json] = field(default_factory=list)


@dataclass
class Reply:
    """What a model answers to a question, as far as it has come."""

    talk: Talk
    question: Json
    text: str = ""
    error: str = ""
    stopped: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    def read(self, client: Client, options: Json) -> None:
        """Ask, and read along until the answer ends or is stopped: one that was is no part of the conversation."""
        asked = [*self.talk.said, self.question]
        try:
            with closing(client.chat({"model": self.talk.model, "messages": asked, **options})) as pieces:
                for piece in pieces:
                    if self.stopped:
                        return
                    self.text += printable(piece)
            self.talk.said = [*asked, {"role": "assistant", "content": self.text}]
        except ClientError as error:
            self.error = str(error)
        finally:
            self.over.set()

    def stop(self) -> None:
        """Have it end here."""
        if not self.over.is_set():
            self.stopped = True
            self.text += f" {_STOPPED}"


def printable(text: str) -> str:
    """Without what would move the cursor or colour the terminal: a model may say anything."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _chat(args: argparse.Namespace) -> int:
    if args.json and args.prompt is None:
        raise CommandError("--json goes with --prompt: a conversation is for people.")
    wanted = {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    options = {name: value for name, value in wanted.items() if value is not None}
    with connect(args) as client:
        before = [{"role": "system", "content": args.system}] if args.system else []
        talks = [Talk(name, resolved(client, name), list(before)) for name in args.models]
        if args.prompt is not None:
            return _once(args, client, talks, options)
        out.print("Ctrl-C stops an answer, Ctrl-D ends, /new begins anew.", style="dim")
        for text in _prompts():
            if text == "/new":
                for talk in talks:
                    talk.said = list(before)
            else:
                exchange(client, talks, text, options, out)
    return 0


def resolved(client: Client, name: str) -> str:
    """The model's own name: of JOB its result, of JOB:STAGE what the stage left, of JOB:base what it began with."""
    job_id, _, stage = name.partition(":")
    if not job_id.startswith("ftjob-"):
        return name
    job = client.job(job_id)
    if stage in ("", "base"):
        found = job["model"] if stage else job["fine_tuned_model"]
        if found is None:
            raise CommandError(f"Job {job_id} is {job['status']} and has no model yet: name a stage, as {job_id}:sft.")
        return str(found)
    left = [row["fine_tuned_model_checkpoint"] for row in client.checkpoints(job_id)]
    names = {model.rpartition(":ckpt-")[2]: model for model in left}
    if stage not in names:
        raise CommandError(f"Job {job_id} has no model of stage {stage!r}; it has: {', '.join(['base', *names])}.")
    return str(names[stage])


def _once(args: argparse.Namespace, client: Client, talks: Sequence[Talk], options: Json) -> int:
    """One question, for scripts: each answer as it is."""
    replies = _asked(client, talks, args.prompt, options)
    for reply in replies:
        reply.over.wait()
    answers = [{"model": one.talk.model, "answer": one.text, "error": one.error or None} for one in replies]
    shown(args, answers, lambda: "\n\n".join(_plain(reply, len(talks) > 1) for reply in replies))
    return int(any(reply.error for reply in replies))


def _plain(reply: Reply, named: bool) -> str:
    return (f"{reply.talk.name}\n" if named else "") + (f"error: {reply.error}" if reply.error else reply.text)


def _prompts() -> Iterator[str]:
    """What is typed, until Ctrl-D. Ctrl-C takes back what was typed so far."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines with it
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            out.print()
        except EOFError:
            out.print()
            return
        else:
            if text:
                yield text


def exchange(client: Client, talks: Sequence[Talk], text: str, options: Json, console: Console) -> None:
    """Ask every model, and show the answers as they grow; Ctrl-C stops them."""
    replies = _asked(client, talks, text, options)
    with Live(console=console, refresh_per_second=10, vertical_overflow="visible") as live:
        try:
            while not all(reply.over.wait(0.05) for reply in replies):
                live.update(_side_by_side(replies, console.width))
        except KeyboardInterrupt:
            for reply in replies:
                reply.stop()
        live.update(_side_by_side(replies, console.width))


def _asked(client: Client, talks: Sequence[Talk], text: str, options: Json) -> list[Reply]:
    replies = [Reply(talk, {"role": "user", "content": text}) for talk in talks]
    for reply in replies:
        threading.Thread(target=reply.read, args=(client, options), daemon=True).start()
    return replies


def _side_by_side(replies: Sequence[Reply], width: int) -> Any:
    panels = [_panel(reply) for reply in replies]
    if len(panels) == 1:
        return panels[0].renderable
    if len(panels) * _SIDE_BY_SIDE > width:
        return Group(*panels)
    table = Table.grid(expand=True)
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table


def _panel(reply: Reply) -> Panel:
    text = Text(reply.error, style="red") if reply.error else Text(reply.text or "…")
    return Panel(text, title=Text(reply.talk.name), title_align="left", border_style="dim")
