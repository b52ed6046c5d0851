"""A store that takes long holds up nobody who asks, and its answer is there for whoever comes again."""

from __future__ import annotations

import threading
import time

import pytest

from service.storage.store import StoreAway
from tests.waiting import PATIENCE, until
from worker.prompt import Prompt


class Slow:
    """Contents that are told of once `open` is set; "away" is not to be had. Fulfils `Contents`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked: list[str] = []

    def exists(self, sha256: str) -> bool:
        self.asked.append(sha256)
        self.open.wait(PATIENCE)
        if sha256 == "away":
            raise StoreAway("nobody answers")
        return sha256 == "there"


def answered(prompt: Prompt, sha256: str) -> bool | None:
    try:
        return prompt.exists(sha256)
    except StoreAway:
        return None


def test_what_is_known_at_once_is_said_at_once() -> None:
    slow = Slow()
    slow.open.set()
    prompt = Prompt(slow, seconds=PATIENCE)
    assert (prompt.exists("there"), prompt.exists("else")) == (True, False)
    with pytest.raises(StoreAway, match="nobody answers"):
        prompt.exists("away")


def test_a_store_that_says_nothing_is_waited_for_once_and_bothered_by_few_questions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="worker.prompt")
    slow, began = Slow(), time.monotonic()
    prompt = Prompt(slow, seconds=0.05, fresh=PATIENCE)
    assert [answered(prompt, name) for name in ("there", "else", "there", *"123456789")] == [None] * 12
    assert time.monotonic() - began < PATIENCE / 2
    until(lambda: len(slow.asked) == 4)
    slow.open.set()
    assert until(lambda: answered(prompt, "there"))
    assert until(lambda: answered(prompt, "else") is False)
    assert slow.asked.count("there") == 1, "an answer that came late is one all the same"
    assert until(lambda: answered(prompt, f"anew {time.monotonic()}") is False)
    told = [record.getMessage().partition(" ")[0] for record in caplog.records]
    assert told == ["store_away", "store_back"], "whoever reads the log reads of a change"


def test_while_one_question_is_waited_for_no_other_is() -> None:
    slow = Slow()
    prompt = Prompt(slow, seconds=PATIENCE)
    first = threading.Thread(target=answered, args=(prompt, "there"))
    first.start()
    until(lambda: slow.asked)
    assert answered(prompt, "else") is None
    assert first.is_alive(), "whoever came later was told first"
    slow.open.set()
    first.join()


def test_a_question_that_failed_is_asked_again() -> None:
    slow = Slow()
    slow.open.set()
    prompt = Prompt(slow, seconds=PATIENCE)
    assert answered(prompt, "away") is None
    assert answered(prompt, "away") is None
    assert slow.asked == ["away", "away"]
