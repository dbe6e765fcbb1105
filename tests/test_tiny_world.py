"""The checker never accuses the right and always finds the wrong, at its place."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import (
    TARGET_STYLE,
    Problem,
    Step,
    Style,
    check_answer,
    first_mistake,
    make_problem,
    problems,
    solve,
)

seeds = st.integers(0, 2**32)
styles = st.sampled_from([Style(), TARGET_STYLE, Style(draft=1.0), Style(0.4, 0.3)])
PROBLEM = Problem(
    "Tom has 12 apples. Tom buys 3 more. Tom doubles the pile. How many apples are left?",
    "Tom", "apples", 12, (Step("+", 3, 12, 15), Step("*", 2, 15, 30)),
)  # fmt: skip
RIGHT = (
    "Tom starts with 12 apples. We compute 12 + 3 makes 15. Then there are 15 * 2 = 30. "
    "Finally, Tom has 30 apples left."
)


@given(seeds, styles)
@settings(max_examples=500, deadline=None)
def test_right_solutions_pass(seed, style):
    rng = random.Random(seed)
    problem = make_problem(rng)
    text = solve(problem, rng, style)
    assert first_mistake(problem, text) is None
    assert check_answer(problem, text)


@given(seeds, styles, st.sampled_from(MISTAKES))
@settings(max_examples=1000, deadline=None)
def test_every_mistake_is_found_at_its_place(seed, style, kind):
    rng = random.Random(seed)
    problem = make_problem(rng)
    text, at = solve_wrongly(problem, rng, style, kind=kind)
    start, end = first_mistake(problem, text)
    assert start == at
    assert start < end <= len(text)


@given(seeds, styles, st.sampled_from(MISTAKES), st.booleans())
@settings(max_examples=500, deadline=None)
def test_corrected_solutions_keep_the_mistake_and_end_right(seed, style, kind, late):
    rng = random.Random(seed)
    problem = make_problem(rng)
    text, at = solve_wrongly(problem, rng, style, kind=kind)
    corrected = correct(problem, rng, text, style, late=late)
    assert first_mistake(problem, corrected)[0] == at
    assert " Wait, " in corrected
    assert check_answer(problem, corrected)


@given(seeds, st.data())
@settings(max_examples=300, deadline=None)
def test_a_truncated_solution_is_right_so_far_but_not_done(seed, data):
    rng = random.Random(seed)
    problem = make_problem(rng)
    text = solve(problem, rng)
    text = text[: data.draw(st.integers(0, len(text) - 2))]
    start, end = first_mistake(problem, text)
    assert not check_answer(problem, text)
    # Only the dot may be missing. A number or word cut in two may be wrong; then that is the place.
    assert end == len(text)
    assert text[start:].isalnum() or start == end


@given(st.text(alphabet="Tom has 12 apples left.+=\u00e9", max_size=60))
def test_any_text_can_be_checked(text):
    start, end = first_mistake(PROBLEM, text) or (0, 0)
    assert 0 <= start <= end <= len(text)
    assert not check_answer(PROBLEM, text) or "Tom has 30 apples left." in text


@pytest.mark.parametrize(
    ("right", "wrong", "mistake"),
    [
        ("Tom starts", "Ben starts", "Ben"),
        ("12 apples. We", "12 coins. We", "coins"),
        ("with 12", "with 13", "3"),
        ("with 12", "with 1", " "),
        ("We compute 12", "We compute 21", "2"),
        ("+", "-", "-"),
        ("3 makes", "33 makes", "3"),
        ("makes 15", "makes 16", "6"),
        ("compute", "guess", "guess"),
        ("Then there are 15 * 2 = 30. ", "", "Finally"),
        ("Then there are 15 * 2 = 30. Finally, ", "So in the end ", "in"),
        ("Then there are 15 * 2 = 30. Finally, ", "The answer is that ", "answer"),
        ("Finally, ", "After that, 30 + 1 = 31. ", "+"),
        ("has 30", "has 15", "1"),
        ("has 30 apples", "has 30 pens", "pens"),
        ("left.", "left. Then", "Then"),
        ("Tom has 30 apples left", "30 left", "left"),
        (" Finally, Tom has 30 apples left.", "", ""),
        (" left.", "", ""),
    ],
)
def test_one_wrong_fact(right, wrong, mistake):
    text = RIGHT.replace(right, wrong, 1)
    assert text != RIGHT
    start, end = first_mistake(PROBLEM, text)
    assert text[start:end] == mistake


def test_answer_needs_name_number_and_item():
    assert check_answer(PROBLEM, RIGHT)
    for wrong in (
        "Ben has 30 apples left.",
        "Tom has 31 apples left.",
        "Tom has 30 pens left.",
        "Tom has 30 apples",
        "",
    ):
        assert not check_answer(PROBLEM, wrong)


def test_parts_and_seeds_have_problems_of_their_own():
    assert problems(5, seed=1) == problems(9, seed=1)[:5]
    assert problems(5, seed=1) != problems(5, seed=2)
    assert problems(5, seed=1, part="train") != problems(5, seed=1)


def test_a_problem_without_room_for_a_mistake_gets_another():
    rng = random.Random(16063352)
    problem = make_problem(rng)
    text, at = solve_wrongly(problem, rng, kind="repeated")
    assert first_mistake(problem, text)[0] == at
