"""Reading answers: a labelled set of shapes that models emit, and the limits that keep the reader from hanging."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo_engine.data.answers import Verdict, compare, extract, reference
from allo_engine.data.parsing import parse
from allo_engine.data.quantities import is_bounded, same_expression
from allo_engine.data.values import (
    Amount,
    Date,
    Formula,
    Items,
    Matrix,
    Number,
    Options,
    Ratio,
    Text,
    Time,
    Truth,
    Value,
    normalise,
)
from tests.unit.engine.data.labelled_later import LATER
from tests.unit.engine.data.labelled_shapes import SHAPES
from tests.waiting import PATIENCE

R, W, U = Verdict.RIGHT, Verdict.WRONG, Verdict.UNPARSED

LABELLED: list[tuple[str, str, Verdict]] = [
    # numbers behind a marker
    ("3*4=12, 12-5=7. The answer is 7", "7", R),
    ("3*4=12, 12-5=8. The answer is 8", "7", W),
    ("The answer is 7.", "7", R),
    ("The answer is: 7", "7", R),
    ("the answer is 7!", "7", R),
    ("The answer is 1,000.", "1000", R),
    ("The answer is 1000", "1,000", R),
    ("The answer is 1,000,000", "1000000", R),
    ("The answer is $5.", "5", R),
    ("The answer is $5.00", "5", R),
    ("The answer is 5 dollars.", "$5", R),
    ("The answer is £12", "12", R),
    ("The answer is 50%.", "50", R),
    ("The answer is 50%.", "0.5", R),
    ("The answer is 0.5", "50%", R),
    ("The answer is 50 percent.", "50%", R),
    ("The answer is 40%.", "50%", W),
    ("The answer is -3", "-3", R),
    ("The answer is −3", "-3", R),
    ("The answer is 3", "-3", W),
    ("The answer is negative 3.", "-3", R),
    ("The answer is 0.5", "\\frac{1}{2}", R),
    ("The answer is \\frac12", "0.5", R),
    ("The answer is $\\frac{1}{2}$.", "0.5", R),
    ("The answer is 1/2", "0.5", R),
    ("The answer is ½.", "0.5", R),
    ("The answer is 2 1/2", "2.5", R),
    ("The answer is 2½ cups.", "2.5", R),
    ("The answer is 0.3333333", "1/3", R),
    ("The answer is .5", "0.5", R),
    ("The answer is 5.0", "5", R),
    ("The answer is 05", "5", R),
    ("The answer is 3.14", "3.15", W),
    ("The answer is 42 apples.", "42", R),
    ("The answer is 42 apples", "43", W),
    ("The answer is about 42.", "42", R),
    ("The answer is five.", "5", R),
    ("The answer is twenty-one", "21", R),
    ("The answer is 2 dozen.", "24", R),
    ("The answer is 3 million", "3000000", R),
    ("The answer is x = 5.", "5", R),
    ("The answer is 3 + 4 = 7.", "7", R),
    ("The answer is 3 + 4 = 8 apples.", "7", W),
    ("The answer is 12 / 4", "3", R),
    ("The answer is 2 \\times 10^3", "2000", R),
    ("The answer is 2e3", "2000", R),
    ("The answer is 12 cm^2.", "12", R),
    ("The answer is 12 m2.", "12", R),
    ("The answer is 30^\\circ", "30", R),
    ("The answer is 30°.", "30", R),
    ("The answer is Tom has 9 apples left.", "9", R),
    ("The answer is 24 (4 boxes of 6).", "24", R),
    ("The answer is 12 because 3 times 4 is 12.", "12", R),
    ("The answer is 12, since 3 * 4 = 12.", "12", R),
    ("The answer is 12. This is because 20 - 8 = 12.", "12", R),
    ("The answer is 12.\n\nExplanation: 20 - 8 = 12.", "12", R),
    ("The answer is **12**.", "12", R),
    ("**The answer is 12.**", "12", R),
    ("**Answer:** 12", "12", R),
    ("**Answer: 12**", "12", R),
    ("Answer: 12", "12", R),
    ("answer = 12", "12", R),
    ("ANSWER: 12", "12", R),
    ("Ans: 12", "12", R),
    ("Final answer: 12", "12", R),
    ("Final Answer: The final answer is $12$. I hope it is correct.", "12", R),
    ("The final answer is 12", "13", W),
    ("The correct answer is 12.", "12", R),
    ("The answer to the question is 12.", "12", R),
    ("So the answer, therefore, is 12.", "12", R),
    ("Therefore, the answer would be 12.", "12", R),
    ("## Answer\n12", "12", R),
    ("Let me think.\n**Final Answer**\n\n12", "12", R),
    ("The answer is:\n\n12", "12", R),
    ("The answer is:\n$$12$$", "12", R),
    ("She has 3+4=7.\n#### 7", "7", R),
    ("She has 3+4=8.\n#### 8", "7", W),
    ("#### 1,000", "1000", R),
    ("Thus we get \\boxed{7}.", "7", R),
    ("$\\boxed{\\frac{1}{2}}$", "0.5", R),
    ("The answer is $\\boxed{8}$", "7", W),
    ("The answer is \\boxed{7}. Then \\boxed{7} it is.", "7", R),
    ("The answer is “12”.", "12", R),
    ("The answer is 12<|im_end|>", "12", R),
    # the last answer counts; an announcement that announces nothing does not
    ("The answer is 5. Wait, the answer is 7.", "7", R),
    ("The answer is 7. Wait, the answer is 5.", "7", W),
    ("The answer is 7. I think the answer is correct.", "7", R),
    ("The answer is not 5. The answer is 7.", "7", R),
    ("The answer is 7. The answer is not 5.", "7", R),
    ("The answer is 7.\n\nQuestion: What is 2+2?\nAnswer: 4", "7", R),
    ("12\n\nThe answer is 12.", "12", R),
    ("Explanation: 12 is the answer.", "12", R),
    ("12 is the correct answer.", "13", W),
    # the whole response is the answer, or there is none
    ("42", "42", R),
    ("42.", "42", R),
    ("$42", "42", R),
    (" **42** ", "42", R),
    ("42 apples", "42", R),
    ("41", "42", W),
    ("3*4=12, 12-5=7", "7", U),
    ("First 3*4=12. Then 12-5=8.", "7", U),
    ("She has 7 apples left.", "7", U),
    ("3 + 4 = 7\n7 + 1 = 8", "8", U),
    ("The answer is", "7", U),
    ("3*4=12. The answer is ", "7", U),
    ("3*4=12. The answer is:", "7", U),
    ("3*4=12. The answer", "7", U),
    ("The answer is **", "7", U),
    ("The answer is $", "7", U),
    ("The answer is \\boxed{1", "12", U),
    ("The answer is 5. So the final answer is", "5", U),
    ("", "7", U),
    ("   \n", "7", U),
    ("I do not know.", "7", U),
    ("The answer is unknown.", "7", U),
    ("The answer is apples.", "7", U),
    ("The answer is 5 or 6.", "5", U),
    ("The answer is between 5 and 9.", "7", U),
    ("The answer is 5 hours and 30 minutes.", "5.5", U),
    ("The answer is 5, 6 and 7.", "7", U),
    ("The answer is not 5.", "5", U),
    ("The answer is 7 out of 9.", "9", U),
    ("The answer is more than 7.", "9", U),
    ("#### Step 1: add the apples\nThen we have 3+4=7 apples.", "7", U),
    ("The answer is 7 - 3.", "7", W),
    ("The answer is 6.", "7", W),
    ("Answer: 70", "7", W),
    ("#### 17", "7", W),
    ("The answer is 0.7.", "7", W),
    ("The answer is 7 apples.", "70", W),
    ("The answer is minus 7.", "7", W),
    ("The answer is 1/7", "7", W),
    ("The answer is x = 8.", "7", W),
    ("The answer is \\frac{7}{2}", "7", W),
    ("The answer is 7,000", "7", W),
    ("The answer is 700%", "70", W),
    ("The answer is six.", "7", W),
    ("\\boxed{6}", "7", W),
    ("6 apples", "7", W),
    # options
    ("The answer is B.", "B", R),
    ("The answer is (B).", "B", R),
    ("The answer is B", "(B)", R),
    ("The answer is (b)", "B", R),
    ("The answer is **B**", "B", R),
    ("The answer is B) food", "B", R),
    ("The answer is B. food", "B", R),
    ("The answer is B: food", "B", R),
    ("The answer is option B.", "B", R),
    ("The correct answer is Option (C): water.", "B", W),
    ("The answer is C", "B", W),
    ("The answer is \\boxed{B}", "B", R),
    ("The answer is \\boxed{\\text{B}}", "B", R),
    ("Answer: C", "B", W),
    ("B", "B", R),
    ("(C)", "B", W),
    ("B) food", "B", R),
    ("The answer is A", "A", R),
    ("The answer is a dog.", "A", U),
    ("The answer is A dog.", "B", U),
    ("The answer is B and C.", "B", U),
    ("The answer is B or C.", "B", U),
    ("The answer is food.", "B", U),
    ("Both A and B are plausible.", "B", U),
    ("The answer is (", "B", U),
    # maths
    ("The answer is $x^2+1$.", "1 + x^{2}", R),
    ("The answer is $x^2+2$.", "x^2+1", W),
    ("The answer is 2\\sqrt{3}.", "\\sqrt{12}", R),
    ("The answer is 2*sqrt(3)", "2\\sqrt{3}", R),
    ("The answer is 2√3", "2\\sqrt{3}", R),
    ("The answer is \\boxed{\\frac{\\pi}{2}}", "pi/2", R),
    ("The answer is (3, 4).", "(3,4)", R),
    ("The answer is (4, 3).", "(3,4)", W),
    ("The answer is $x = 5$", "x=5", R),
    ("The answer is 5", "x=5", R),
    ("The answer is 6", "x=5", W),
    ("The answer is [0,1)", "[0, 1)", R),
    ("The answer is x + 1", "1 + x", R),
    ("The answer is the line $y = 2x + 1$.", "y = 2x + 1", R),
    ("The answer is \\(\\frac{x}{2}\\)", "x/2", R),
    ("The answer is a parabola.", "x^2+1", U),
    ("The answer is $\\frac{x}{", "x/2", U),
    # free text
    ("The answer is food.", "food", R),
    ("The answer is Food", "food", R),
    ("The answer is food", "Food.", R),
    ("The answer is the food.", "food", R),
    ("The answer is A bacterial population in the bloodstream", "a bacterial population in the bloodstream", R),
    ("The answer is stop and start the flow of current.", "stop and start the flow of current.", R),
    ("The answer is carbon  dioxide", "carbon dioxide", R),
    ("The answer is carbon dioxide", "water", W),
    ("The answer is food chain", "food", W),
    ("The answer is 'food'.", "food", R),
    ("The answer is *food*", "food", R),
    ("The answer is food because plants make sugar.", "food", R),
    ("The answer is food, which plants make.", "food", R),
    ("The answer is food. Plants make it.", "food", R),
    ("The answer is food (made by algae).", "food", R),
    ("The answer is B) food", "food", R),
    ("The answer is B) water", "food", W),
    ("The answer is food", "B) food", R),
    ("The answer is well known", "well-known", R),
    ("The answer is Mt. Everest.", "Mt. Everest", R),
    ("The answer is U.S. Army.", "u.s. army", R),
    ("The answer is Ann", "Ann", R),
    ("The answer is Ben", "Ann", W),
    ("The answer is 5 km", "5km", R),
    ("The answer is 5 kilometers", "5 meters", W),
    ("The answer is 3:30", "3:30", R),
    ("The answer is 4:30", "3:30", W),
    ("The answer is yes.", "yes", R),
    ("The answer is yes, because fish can swim.", "Yes", R),
    ("The answer is No, they can not.", "yes", W),
    ("Answer: true", "yes", R),
    ("\\boxed{\\text{Monday}}", "Monday", R),
    ("The answer is “café”", "cafe\u0301", R),
    ("food is the answer.", "food", R),
    ("food", "food", R),
    ("water", "food", U),
    ("The algae supply food to the fungi.", "food", U),
    ("The answer is stop and start the fl", "stop and start the flow of current.", U),
    ("The answer is B", "food", U),
    ("I think water is the answer.", "food", U),
    ("The answer is clear", "clear", R),
    ("The answer is not give up", "not give up", R),
    ("The answer is below the equator", "below the equator", R),
    ("The answer is clear skies", "rain", W),
    ("The answer is correct.", "food", U),
    ("The answer is 42 apples", "42 apples", R),
    ("The answer is 42", "42 apples", R),
    ("The answer is 41", "42 apples", W),
    ("The answer is water is less dense as a solid", "water is less dense as a solid", R),
    ("The answer is 32°C", "100°C", W),
    ("The answer is CO2", "H2O", W),
    ("The answer is h2o", "H2O", R),
    ("The answer is h_{2}o", "H_{2}O", R),
    ("Options:\na leg muscle\nThe answer is clear.", "a leg muscle", U),
]


@pytest.mark.parametrize(("response", "gold", "verdict"), LABELLED)
def test_every_labelled_answer_is_judged_as_labelled(response: str, gold: str, verdict: Verdict) -> None:
    assert compare(response, gold) is verdict


def figures(cases: list[tuple[str, str, Verdict]], verdict: Verdict) -> tuple[float, float]:
    """(precision, recall) of a verdict."""
    judged = [(compare(response, gold), label) for response, gold, label in cases]
    said = [label for found, label in judged if found is verdict]
    meant = [found for found, label in judged if label is verdict]
    return said.count(verdict) / len(said), meant.count(verdict) / len(meant)


@pytest.mark.parametrize(("cases", "least"), [(LABELLED, 200), (SHAPES, 200)])
def test_precision_and_recall_hold_on_the_labelled_sets(cases: list[tuple[str, str, Verdict]], least: int) -> None:
    assert len(cases) >= least
    for verdict in (R, W):
        precision, recall = figures(cases, verdict)
        assert precision >= 0.99
        assert recall >= 0.99
    assert figures(cases, W)[0] == 1  # whatever is called wrong is forgotten later on


def test_no_right_answer_of_cases_that_the_reader_was_not_made_by_is_called_wrong() -> None:
    assert figures(LATER, W)[0] == 1
    assert figures(LATER, R)[0] == 1
    assert min(figures(LATER, W)[1], figures(LATER, R)[1]) >= 0.95


@pytest.mark.parametrize(
    ("response", "gold", "verdict"),
    [
        ("212°F", "100 degrees", U),  # an angle, or a temperature
        ("£5", "5 pounds", U),
        ("365 days", "1 year", U),
        ("6:40", "3:20", U),  # two times, or one ratio
        ("14:30", "2:30", U),
        ("[3, 4]", "(3, 4)", U),  # a list, or an interval and a point
        ("3,14", "3.41", U),
        ("5 feet 6 inches", "66 inches", R),
        ("5 feet 6 inches", "5 feet 5 inches", W),
        ("3 dollars and 50 cents", "$3.50", R),
        ("one and a half", "1.5", R),
        ("1000001", "1000000", W),
    ],
)
def test_what_may_mean_two_things_is_not_called_wrong(response: str, gold: str, verdict: Verdict) -> None:
    assert compare(f"The answer is {response}", gold) is verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4*6=24, 24/3=8. The answer is 8", ("8", Number)),
        ("The answer is stop and start the flow of current.", ("stop and start the flow of current", Text)),
        ("The answer is (B).", ("(B)", Options)),
        ("so \\boxed{\\frac{x}{2}}", ("\\frac{x}{2}", Formula)),
        ("#### 1,000", ("1,000", Number)),
        ("12", ("12", Number)),
        ("some reasoning and 12", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_the_answer_is_freed_of_its_sentence_and_typed(text: str, answer: tuple[str, type[Value]] | None) -> None:
    found = extract(text)
    assert (found and (found.text, type(found.value))) == answer


def test_the_reference_is_the_answer_field_or_else_what_the_solution_answers() -> None:
    assert reference({"solution": "The answer is 8", "answer": "7"}) == "7"
    assert reference({"solution": "4+4=8. The answer is 8.", "answer": None}) == "8"
    assert reference({"solution": "4+4=8"}) is None
    assert reference({"solution": "It rains as air cools. The answer is not dry"}) == "not dry"
    assert (
        reference({"solution": "The answer is denser as a solid than as a liquid."})
        == "denser as a solid than as a liquid"
    )
    assert reference({"problem": "4+4?"}) is None
    assert reference({"answer": 7}) == "7"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("7", Number),
        ("$1,000", Amount),
        ("5 meters", Amount),
        ("1 hour 30 minutes", Amount),
        ("\\frac12", Number),
        ("1 000 000", Number),
        ("B", Options),
        ("(b)", Options),
        ("A and C", Options),
        ("x+1", Formula),
        ("(3, 4)", Items),
        ("0 < x ≤ 1", Items),
        ("x = 2 or x = -2", Items),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", Matrix),
        ("3:30", Time),
        ("noon", Time),
        ("4 : 3", Ratio),
        ("4 July 1776", Date),
        ("no", Truth),
        ("food", Text),
        ("e-mail", Text),
        ("red, green and blue", Text),
    ],
)
def test_the_form_of_an_answer_tells_its_kind(answer: str, kind: type[Value]) -> None:
    assert type(parse(answer)) is kind


HOSTILE = [
    "9**9**9**9",
    "9^9^9^9",
    "9^{9^{9^9}}",
    "((9^999)^999)^999",
    "(((9!)!)!)!",
    "9!!!!!!",
    "99999999!",
    "\\sum_{i=1}^{10^9} i",
    "\\prod_{i=1}^{99999} i",
    "(x+y+z)^{999}",
    "\\exp(\\exp(\\exp(99)))",
    "(" * 100 + "1" + ")" * 100,
    "\\sqrt{" * 30 + "x" + "}" * 30,
    "\\frac{" * 60,
    "1" + "+x^2" * 2000,
    "9" * 5000,
    "1e999999999",
    "1/0",
    "\\frac{1}{0}",
    "0/0",
    "{" * 5000,
    "the answer is " * 3000,
    "\\boxed{" * 3000,
    "$" * 5000,
    "(" * 5000,
    " " * 20000 + "x",
    "is the answer" * 2000,
    "x" + " " * 15000 + "<",
    "x" + "\n" * 15000 + "<",
    "1, " * 3000,
    "5 km and " * 1000,
    ", ".join(f"\\sqrt{{{number}}}" for number in range(16)),
    "\x00\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "gold", ["7", "x+1", "B", "food", "10:30", ", ".join(f"\\sqrt{{{50 + i}}}" for i in range(16))]
)
def test_hostile_text_neither_hangs_nor_raises(text: str, gold: str) -> None:
    started = time.monotonic()
    assert compare(f"The answer is {text}", gold) is not R
    assert compare(text, gold) is not R
    assert compare(f"The answer is {gold}", text) is not R
    assert time.monotonic() - started < PATIENCE


def test_a_tower_of_powers_never_reaches_sympy() -> None:
    assert not is_bounded("9^9^9^9")
    assert not is_bounded("9^{9^{9}}")
    assert not is_bounded("(9^{99})^{99}")
    assert is_bounded("x^2 + 3x^{10}")
    assert is_bounded("e^{-x}")
    assert same_expression("9^9^9^9", "7") is None


def test_a_thread_can_compare_although_it_may_set_no_alarm() -> None:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(compare("The answer is $2\\sqrt{3}$", "\\sqrt{12}")))
    thread.start()
    thread.join(30)
    assert verdicts == [R]


@given(st.text(max_size=80), st.text(max_size=20))
@settings(max_examples=300)
def test_any_text_gets_a_verdict(response: str, gold: str) -> None:
    assert compare(response, gold) in Verdict
    extract(response)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_integers_are_right_exactly_when_equal(a: int, b: int) -> None:
    assert compare(f"The answer is {a:,}.", str(b)) is (R if a == b else W)


@given(st.text(max_size=60))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_reading_answers_needs_no_torch() -> None:
    code = "import sys, allo_engine.data.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
