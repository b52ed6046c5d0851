"""The demo's problems: two steps of arithmetic in a short story, generated. Standard library only.

    Mia has 4 bags of 7 nuts and eats 9. How many nuts are left?
    4*7=28, 28-9=19. The answer is 19

A small model picks up the form within a few hundred problems and then fails where arithmetic is hard: at single
figures of the product or of the second step. Those are wrong tokens in a response that is otherwise right, which is
what ALLO's token-level stages are about. Problems are short so that every stage fits a CPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from random import Random

TEMPLATE = "{problem}\nAnswer:"
"""The prompt that the demo's job uses: a chat template would double the tokens of so short a problem."""

NAMES = ("Ann", "Ben", "Tom", "Mia", "Sam", "Leo", "Eva", "Max", "Zoe", "Dan", "Kim", "Joe")
FOOD = ("apples", "eggs", "nuts")
THINGS = (*FOOD, "books", "pens", "cards", "coins", "balls", "stamps", "cups")
BOXES = ("boxes", "bags", "packs", "jars", "trays")
HELD_OUT_SHARE = 5
"""One in so many combinations of figures is kept for the held-out file."""


def generate(n: int, seed: int, *, held_out: bool = False) -> list[dict[str, str]]:
    """`n` distinct problems with solution and answer, a function of `seed`.

    Training and held-out problems never share their figures, whatever the seeds: a model that has only memorised
    "4*7=28, 28-9=19" gains nothing on the held-out file.
    """
    random = Random(seed)  # noqa: S311 - problems, not secrets
    problems: dict[str, dict[str, str]] = {}
    for problem in _stories(random, held_out):
        if len(problems) == n:
            break
        problems.setdefault(problem["problem"], problem)
    return list(problems.values())


def _stories(random: Random, held_out: bool) -> Iterator[dict[str, str]]:
    while True:
        sign, boxes, each = random.choice("+-/"), random.randint(3, 9), random.randint(3, 9)
        figure = _second_figure(random, sign, boxes, each)
        if figure is not None and is_held_out(boxes, each, sign, figure) is held_out:
            yield told(random, boxes, each, sign, figure)


def told(random: Random, boxes: int, each: int, sign: str, figure: int) -> dict[str, str]:
    """The calculation boxes * each (sign) figure as one of its stories, with solution and answer."""
    total = boxes * each
    result = {"+": total + figure, "-": total - figure, "/": total // figure}[sign]
    return {
        "problem": _story(random, boxes, each, sign, figure),
        "solution": f"{boxes}*{each}={total}, {total}{sign}{figure}={result}. The answer is {result}",
        "answer": str(result),
    }


def _second_figure(random: Random, sign: str, boxes: int, each: int) -> int | None:
    total = boxes * each
    if sign == "/":
        return random.choice([d for d in range(2, 10) if total % d == 0 and d not in (boxes, each)] or [None])
    return random.randint(2, 29 if sign == "+" else min(29, total - 1))


def is_held_out(boxes: int, each: int, sign: str, figure: int) -> bool:
    """Which file a combination of figures belongs to, fixed for all time by a checksum."""
    return zlib.crc32(f"{boxes}*{each}{sign}{figure}".encode()) % HELD_OUT_SHARE == 0


def _story(random: Random, boxes: int, each: int, sign: str, figure: int) -> str:
    name, thing = random.choice(NAMES), random.choice(THINGS)
    stock = f"{boxes} {random.choice(BOXES)} of {each} {thing}"
    if sign == "/":
        return f"{name} shares {stock} among {figure} friends. How many {thing} does each get?"
    if sign == "+":
        return f"{name} has {stock} and {random.choice(('buys', 'finds', 'gets'))} {figure} more. How many {thing} now?"
    verb = random.choice(("sells", "loses", "eats" if thing in FOOD else "gives away"))
    return f"{name} has {stock} and {verb} {figure}. How many {thing} are left?"
