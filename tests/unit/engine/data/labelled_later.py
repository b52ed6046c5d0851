"""Answers labelled after the reader was done, which was not corrected by them: what to expect of new ones."""

from __future__ import annotations

from allo_engine.data.answers import Verdict

R, W, U = Verdict.RIGHT, Verdict.WRONG, Verdict.UNPARSED

LATER: list[tuple[str, str, Verdict]] = [
    ("So the two numbers are found.\n\nThe answer is 12 and 15.", "12, 15", R),
    ("The answer is 15, 12 and 9.", "9, 12", W),
    ("Thus the solutions are $x=\\frac{1}{2}$ and $x=-3$. The answer is $x=-3, x=\\frac12$.", "1/2, -3", R),
    ("The answer is $(2, -1, 0)$.", "(2,-1,0)", R),
    ("The final coordinates: \\boxed{(2,1)}", "(1,2)", W),
    ("The answer is 16:9.", "32:18", R),
    ("The answer is a ratio of 2 to 5.", "2:5", R),
    ("The answer is 1:2:4", "1:2:3", W),
    ("$\\boxed{\\begin{bmatrix} 2 & 0 \\\\ 0 & 2 \\end{bmatrix}}$", "\\begin{pmatrix} 2&0\\\\0&2 \\end{pmatrix}", R),
    ("The answer is \\begin{vmatrix} 1 & 2 \\\\ 3 & 4 \\end{vmatrix}", "-2", R),
    ("She arrives at 4:15 in the afternoon, so the answer is 4:15 p.m.", "4:15 PM", R),
    ("The answer is 16:15", "4:15 PM", R),
    ("The answer is at 5:15 PM.", "4:15 PM", W),
    ("The answer is 2 hours 15 minutes.", "135 minutes", R),
    ("The answer is 45 seconds.", "1 minute", W),
    ("**Answer**: C. Photosynthesis", "C", R),
    ("I would choose (A), thus the answer is (A) because it floats.", "D", W),
    ("The answer is B, C and D", "B, C, D", R),
    ("The answer is 2.5 kilometers", "2500 m", R),
    ("The answer is 12 square meters.", "12 m^2", R),
    ("The answer is 3 dozen eggs", "36", R),
    ("The answer is 7.50 dollars", "$7.50", R),
    ("The answer is $7.05", "$7.50", W),
    ("The answer is 120%", "1.2", R),
    ("The answer is five sixths.", "\\frac{5}{6}", R),
    ("The answer is $[2, \\infty)$.", "x \\ge 2", R),
    ("The answer is $(2, \\infty)$.", "x \\ge 2", W),
    ("The answer is 4.5 x 10^-3", "0.0045", R),
    ("The answer is it depends on the weather.", "rain", W),
    ("The answer is false, as birds are warm-blooded.", "False", R),
    ("The answer is between 10:00 and 11:00", "10:30 AM", U),
    ("The answer is $a^2 - b^2$", "(a-b)(a+b)", R),
]
