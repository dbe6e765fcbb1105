"""Numbers as people and models write them: what is written is what is read, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_judge.labelling.checkers import (
    MultipleChoiceChecker,
    NumericChecker,
    RegexChecker,
    is_right,
    make_checker,
    reference,
)
from hf_judge.labelling.numbers import last_number

MINUS = ("-", "\u2212", "\u2013", "\uff0d")
SCRIPTS = (0x30, 0x660, 0x6F0, 0x966, 0xFF10)  # where the digits of a script begin
THIN = ("\u2009", "\u202f", "\u00a0", r"\,", "{,}", "'", "\u2019", ",")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"$9{,}500$", 9500),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"$-\frac{3}{4}$", Fraction(-3, 4)),
        ("2 1/2", Fraction(5, 2)),
        ("2\u00bd", Fraction(5, 2)),
        ("\u00be", Fraction(3, 4)),
        ("\u22125", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("\u20ac1.234,50", Fraction("1234.5")),
        ("1,234.50", Fraction("1234.5")),
        ("1.234", Fraction("1.234")),
        ("1,234", 1234),
        ("0,123", Fraction("0.123")),
        ("0,75", Fraction("0.75")),
        ("1.234.567", 1234567),
        ("1,00,000", 100000),
        ("1 234 567,8", Fraction("1234567.8")),
        ("1_000", 1000),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1e-3", Fraction(1, 1000)),
        ("1.5E3", 1500),
        (r"1.5 \times 10^{3}", 1500),
        ("3\u00d710\u2074", 30000),
        ("50%", 50),
        (r"50\%", 50),
        ("5 km", 5),
        ("**42**", 42),
        ("#### 42", 42),
        (r"\boxed{42} which is more than 3", 42),
        (r"\boxed{\frac{1}{2}}", Fraction(1, 2)),
        ("3-5", 5),
        ("from 2 to 4", 4),
        ("5, 12", 12),
        ("5 12", 12),
        ("on 1/2/2020 there were 7", 7),
        ("no number", None),
        ("", None),
        ("1e999999999", None),
        ("7/0", None),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "The answer is {}.", "So x = {}, done"])
def test_a_number_is_read(text, value, frame):
    assert last_number(frame.format(text)) == value


def test_any_number_of_digits():
    digits = "123456789" * 700  # more than Python reads at once
    assert last_number(f"it is {digits}.") != last_number(f"it is {digits[:-1]}8.")
    assert last_number(digits) % 10**9 == 123456789


@st.composite
def written(draw):
    """A value and a way to write it."""
    whole, decimals = draw(st.integers(0, 10**12)), draw(st.text("0123456789", max_size=6))
    mark = draw(st.sampled_from([".", ","])) if decimals else "."
    text = str(whole)
    if draw(st.booleans()):
        group = draw(st.sampled_from([sign for sign in THIN if mark == "." or sign != ","]))
        text = f"{whole:,}".replace(",", group)
    if mark == "," and len(decimals) == 3 and 0 < whole < 1000:
        mark = "."  # 1,234 groups thousands
    grouped_by_comma = "," in text or "{,}" in text
    if decimals:
        text += ("." if grouped_by_comma else mark) + decimals
    value = Fraction(f"{whole}.{decimals or '0'}")
    zero = draw(st.sampled_from(SCRIPTS))
    text = "".join(chr(zero + int(c)) if c in "0123456789" else c for c in text)
    if draw(st.booleans()):
        text, value = draw(st.sampled_from(MINUS)) + draw(st.sampled_from(["", "$", "\u20ac"])) + text, -value
    elif draw(st.booleans()):
        text = draw(st.sampled_from(["$", "\u20ac", "\u00a3"])) + text
    return text + draw(st.sampled_from(["", "%", " km", " apples", "$"])), value


@settings(deadline=None, max_examples=300)
@given(written(), st.sampled_from(["{}", "The answer is {}.", "we get ({})", "x = {}; y is not asked"]))
def test_what_is_written_is_read(number, frame):
    text, value = number
    assert last_number(frame.format(text)) == value


@settings(deadline=None, max_examples=100)
@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_fractions_are_read(numerator, denominator):
    value = Fraction(numerator, denominator)
    sign = "-" if numerator < 0 else ""
    assert last_number(rf"= {sign}\frac{{{abs(numerator)}}}{{{denominator}}}") == value
    assert last_number(f"it is {sign}{abs(numerator)}/{denominator}") == value


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text):
    found = last_number(text)
    assert found is None or isinstance(found, Fraction)


class TestRight:
    @pytest.mark.parametrize(
        "answer", ["#### 42", "42 apples", "**42**", "$42", "42", 42, 42.0, "42.00", r"\boxed{42}"]
    )
    def test_references_are_read_as_responses_are(self, answer):
        assert is_right(NumericChecker(), "So it is 42.", {"answer": answer})
        assert not is_right(NumericChecker(), "So it is 43.", {"answer": answer})

    def test_a_pattern_need_not_stand_in_the_reference(self):
        for checker in (RegexChecker(r"answer: (\w+)"), NumericChecker(r"answer: (\S+)")):
            assert is_right(checker, "answer: 42 for 7", {"answer": "42"})
            assert is_right(checker, "answer: 42 for 7", {"answer": "the answer: 42"})
            assert not is_right(checker, "answer: 7 for 42", {"answer": "42"})

    def test_a_letter(self):
        assert is_right(MultipleChoiceChecker(), "The answer is (B).", {"answer": "b"})
        assert reference(MultipleChoiceChecker(), {"answer": "(C)"}) == "C"

    def test_no_answer_is_not_right(self):
        assert not is_right(NumericChecker(), "none", {"answer": "42"})

    @pytest.mark.parametrize("task", [{}, {"answer": None}, {"answer": "none"}])
    def test_a_reference_without_an_answer_is_refused(self, task):
        with pytest.raises(ValueError, match=r"expected the right answer|finds no answer"):
            is_right(NumericChecker(), "42", task)

    def test_a_function_may_decide_by_itself(self):
        assert is_right(lambda response, task: "yes" in response, "yes", {})
        assert not is_right(lambda response, task: "yes" in response, "no", {"answer": "x"})

    @pytest.mark.parametrize("name", [None, "", "nonsense", "regex", "choice:x", "unit_tests"])
    def test_unknown_checkers_are_refused(self, name):
        with pytest.raises(ValueError, match=r"checker|pattern|executes code"):
            make_checker(name)
