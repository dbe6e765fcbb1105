"""Numbers in the notations of people and models: written at random and read back, and right values by hand."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_judge.checking.numbers import find_numbers, last_number, marked_answer, read_number

SENTENCES = ("{}", "So the answer is {}.", "Total: {} apples\n", "= {}", "It is {}, as said", "**{}**", "答案是{}个")
DIGITS = [
    "0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", "०१२३४५६७८९", "০১২৩৪৫৬৭৮৯", "๐๑๒๓๔๕๖๗๘๙",
    "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
]  # fmt: skip
MINUS = ["-", "\u2212", "\uff0d", "\ufe63", "\u2013", "\u2011"]
GROUPERS = [
    ",",
    "{,}",
    "'",
    "\u2019",
    "\u00a0",
    "\u2009",
    "\u202f",
    "\u2007",
    " ",
    "_",
    r"\,",
    r"\;",
    "~",
    "\u066c",
    "，",
]
CURRENCIES = ["$", r"\$", "€", "£", "¥", "₹", "US$", "USD ", "R$", "Rs. ", "EUR", "₿"]
UNITS = [
    "%",
    r"\%",
    " %",
    " kg",
    "kg",
    " m^2",
    " m²",
    r" \text{ cm}^2",
    r"\,\mathrm{m}^{3}",
    "°",
    r"^\circ",
    " €",
    "€",
    " USD",
    " apples",
]


def grouped(digits: str, separator: str, *, indian: bool = False) -> str:
    head, tail = digits[:-3], digits[-3:]
    size, groups = 2 if indian else 3, [tail]
    while head:
        groups.insert(0, head[-size:])
        head = head[:-size]
    return separator.join(groups)


@st.composite
def written(draw) -> tuple[str, Fraction]:
    """A number in a random notation, and its value."""
    whole = draw(st.integers(0, 10 ** draw(st.sampled_from([1, 3, 4, 6, 9, 40]))))
    kind = draw(st.sampled_from(["plain", "grouped", "indian", "european", "scientific", "fraction", "mixed", "power"]))
    decimals = draw(st.text("0123456789", max_size=6)) if kind in ("plain", "grouped", "indian", "european") else ""
    value, text = Fraction(f"{whole}.{decimals or 0}"), str(whole)
    if kind == "grouped":
        separator = draw(st.sampled_from(GROUPERS))
        text = grouped(text, separator) + ("." + decimals if decimals else "")
    elif kind == "indian":
        text = grouped(text, ",", indian=True) + ("." + decimals if decimals else "")
    elif kind == "european":
        separator = draw(st.sampled_from([".", " ", "'", "\u202f"]))
        # one group behind a single point, and three decimals behind a single comma, are read the English way
        if (separator == "." and len(text) in range(4, 7) and not decimals) or (len(text) < 4 and len(decimals) == 3):
            decimals, value = "", Fraction(whole)
            separator = " "
        text = grouped(text, separator) + ("," + decimals if decimals else "")
    elif kind == "plain":
        text += "." + decimals if decimals else ""
    elif kind == "scientific":
        mantissa, exponent = draw(st.decimals(0, 9, places=3)), draw(st.integers(-40, 40))
        value = Fraction(mantissa) * Fraction(10) ** exponent
        forms = [
            "{m}e{e}",
            "{m}E{e:+03d}",
            r"{m} \times 10^{{{e}}}",
            "{m}×10^{e}",
            "{m} x 10^{e}",
            r"{m}\cdot10^{{{e}}}",
        ]
        text = draw(st.sampled_from([*forms, "{m} * 10**{e}"])).format(m=mantissa, e=exponent)
    elif kind in ("fraction", "mixed"):
        under = draw(st.integers(2, 999))
        over = draw(st.integers(1, under - 1))
        forms = [r"\frac{{{a}}}{{{b}}}", r"\dfrac{{{a}}}{{{b}}}", r"\tfrac {{{a}}} {{{b}}}", "{a}/{b}", "{a}\u2044{b}"]
        text = draw(st.sampled_from(forms)).format(a=over, b=under)
        value = Fraction(over, under)
        if kind == "mixed":
            # three digits behind a blank are a group of the digits before it
            whole = draw(st.integers(1, 9999))
            latex = text.startswith("\\")
            text = f"{whole}{draw(st.sampled_from(['', ' '] if latex else [' and ']))}{text}"
            value += whole
    else:
        base, exponent = draw(st.integers(2, 99)), draw(st.integers(-9, 30))
        value = Fraction(base) ** exponent
        text = draw(st.sampled_from(["{b}^{{{e}}}", "{b}**{e}", "{b}^{e}"])).format(b=base, e=exponent)
    script = draw(st.sampled_from(DIGITS))
    text = text.translate(dict(zip(map(ord, DIGITS[0]), script, strict=True)))
    currency = draw(st.sampled_from(["", *CURRENCIES]))
    if draw(st.booleans()):
        minus = draw(st.sampled_from(MINUS))
        before = draw(st.booleans()) and currency[-1:] in ("$", "€", "£", "¥", "₹", "₿")
        text, value = currency + minus + text if before else minus + currency + text, -value
    else:
        text = currency + text
    text += draw(st.sampled_from(["", "", *UNITS])) if not currency else ""
    wrapped = ["{}", "${}$", r"\({}\)", r"\boxed{{{}}}", r"$\boxed{{{}}}$", r"\text{{{}}}", r"\mathbf{{{}}}"]
    return (draw(st.sampled_from(["{}"] if currency else wrapped)).format(text), value)


@settings(max_examples=800, deadline=None)
@given(written(), st.sampled_from(SENTENCES))
def test_what_is_written_in_any_notation_is_read_back(number, sentence):
    text, value = number
    assert read_number(text) == value
    assert last_number(sentence.format(text)) == value


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from(list("0123456789.,'-/^_ \\{}$%")), max_size=60))
@example("\\frac{")
@example("1/0")
@example("\\boxed{}")
@example("\\boxed")
@example("0^{-1}")
@example("²")
def test_any_text_is_read_without_an_error(text):
    found = last_number(text)
    assert found is None or isinstance(hash(found), int)
    marked_answer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # ambiguous ones, by the rules of the module's docstring
        ("1.234", "1.234"), ("1,234", "1234"), ("0,123", "0.123"), ("12,34", "12.34"), ("1234,567", "1234.567"),
        ("1.234,5", "1234.5"), ("1 234,567", "1234.567"), ("1.234.567", "1234567"), ("1,2,3", "3"), ("1.5,2.5", "2.5"),
        ("50%", "50"), ("5 million", "5000000"), ("2.5 billion", "2500000000"), ("3k", "3000"), ("3 lakh", "300000"),
        # signs
        ("10-5", "5"), ("10 - 5", "5"), ("x = - 5", "-5"), ("it is - 5", "-5"), ("- 5", "-5"), ("a\n- 5", "5"),
        ("a-5", "5"), ("(-5)", "-5"), ("3–5", "5"), ("+5", "5"), ("- $1,234.50", "-1234.5"), ("-EUR 5", "-5"),
        # fractions and mixed numbers
        ("¾", "3/4"), ("1¾", "7/4"), ("-1½", "-3/2"), ("1 1/2", "3/2"), ("-2 3/4", "-11/4"), ("1-1/2", "3/2"),
        (r"\frac34", "3/4"), (r"\frac{1,000}{3}", "1000/3"), (r"\frac{1.5}{2}", "3/4"), (r"-\frac{-3}{4}", "3/4"),
        (r"0.\overline{3}", "1/3"), (r"0.1\overline{6}", "1/6"), ("1/2/2024", "2024"), ("12 / 4", "3"),
        # what counts as the answer
        (r"\boxed{7}. Check: 3 + 5 = 8", "7"), ("#### 42\n\nNext: 5", "42"), (r"\boxed 9 or 8", "9"),
        (r"\boxed{5}, no: \boxed{\text{6 apples}}", "6"), ("#### 3. Step\n 1 + 1 = 2", "2"), ("5 H2O", "5"),
        ("5 m^2", "5"), ("5 cm2", "5"), ("x_1 = 4", "4"), ("3:30", "30"), ("5th", "5"), ("7.", "7"),
    ],
)  # fmt: skip
def test_right_values(text, value):
    assert last_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "none", r"\frac{\sqrt{2}}{2}", r"5 and 2\sqrt{3}", "3/0", r"\boxed{\pi}", "H2O", "0^{-1}"]
)
def test_what_is_no_number_or_cannot_be_read_is_no_answer(text):
    assert last_number(text) is None


def test_any_number_of_digits_at_once():
    digits = "123456789" * 20_000
    start = time.perf_counter()
    assert last_number(digits) != last_number(digits[:-1] + "8")
    assert last_number(f"{digits},5") == last_number(f"{digits}.5")
    assert last_number("1e999999999999") == last_number("10e999999999998") != last_number("1e999999999998")
    assert last_number("1e-30000") == last_number("0." + "0" * 29_999 + "1")
    assert last_number("3e30000/6") == last_number("5e29999")
    for hostile in ("1 " * 20_000, "000 " * 20_000, "1," * 20_000, "{" * 20_000, "\\text{" * 500, "-" * 20_000):
        last_number(hostile)
    assert time.perf_counter() - start < 10


def test_numbers_of_python_and_json():
    assert read_number(0.1) == Fraction(1, 10)
    assert read_number(42) == Decimal(42) == 42
    assert read_number("1234.50") == Decimal("1234.5")
    assert hash(read_number("0.5")) == hash(Decimal("0.5"))
    assert read_number(True) is None
    assert read_number(float("nan")) is None
    assert read_number(None) is None
    assert "bits" in repr(read_number("7" * 10_000))


def test_places_are_those_of_the_spelled_text():
    assert [(str(n.value), n.start, n.end) for n in find_numbers("a 3/4, -5")] == [("3/4", 2, 5), ("-5", 7, 9)]
