r"""Reads numbers as people and models write them, exactly.

Understood: thousands (1,234  1'234  1 234  1_234  1.234.567  1,00,000  9{,}500), decimal points and commas, fractions
and mixed numbers (3/4, 2 1/2, ½, \frac{3}{4}), powers of ten (1e-3, 1.5 \times 10^{3}), currency signs, units and
percent signs (which are left out: 50% is 50), minus signs and digits of any script, and any number of digits.

Where a notation has two readings, one rule decides, for answers and references alike: one comma with three digits
behind it groups thousands (1,234 is 1234) unless the number begins with 0 (0,123 is 0.123); one point is a decimal
point (1.234 is below 2); where both stand, the last one is the decimal mark.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_EXPONENT = 10_000
_MINUS = "−–‒﹣－"
_SLASHES = "⁄∕／"
_SPACES = "\u00a0\u2007\u2009\u200a\u202f"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_CURRENCY = r"$€£¥₹₩₽₺₴฿¢"
_DIGITS = r"\d+(?:[,.'’_ ]\d+)*"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]])[-+][ ]?)?          # not the minus of 3-5
    (?:[{_CURRENCY}][ ]?)?
    (?P<inner>(?<![\w)\]])-)?                # $-5
    (?P<digits>{_DIGITS}|(?<![\w.])\.\d+)
    (?:[eE](?P<exponent>[-+]?\d+)(?!\w|\.\d)
      |[ ]?(?:[x×*·⋅]|\\times|\\cdot)[ ]?10[ ]?\^[ ]?\{{?(?P<power>[-+]?\d+)\}}?)?
    (?:[ ]?/[ ]?(?P<denominator>\d+)(?![\d/]|[ ]?/))?
    """,
    re.VERBOSE,
)
_DECIMALS = {",": r"\.\d+$", " ": r"[.,]\d+$"}  # what may stand behind the groups
_MIXED = re.compile(r"^(\d+) (\d+)$")


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none, or one that is too large to hold.

    A LaTeX ``\\boxed{...}`` that holds a number comes before everything around it.
    """
    boxed = _boxed(text)
    for part in ([boxed] if boxed is not None else []) + [text]:
        plain = _plain(part)
        found = [match for match in _NUMBER.finditer(plain) if match["digits"]]
        if found:
            return _value(found[-1])
    return None


def _boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...}."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 7 : i]
    return None


def _plain(text: str) -> str:
    """The text with one way of writing for each part of a number."""
    text = re.sub(r"(\d)\{([,.])\}(?=\d)", r"\1\2", text)  # 9{,}500
    text = re.sub(r"(\d)\\[,;:! ]\s?(?=\d{3})", r"\1 ", text)  # 9\,500
    text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"\\(?:left|right|mathrm|text|textbf|mathbf|operatorname|displaystyle)\b", "", text)
    text = re.sub(r"\\([$%€£])", r"\1", text).replace("\\!", "").replace("~", " ")
    text = re.sub(r"10\s*([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", lambda m: "10^" + m[1].translate(_SUPERSCRIPTS), text)
    letters = []
    for letter in text:
        digit = unicodedata.decimal(letter, None)
        parts = unicodedata.normalize("NFKC", letter)
        if digit is not None:
            letters.append(str(digit))
        elif letter in _MINUS:
            letters.append("-")
        elif letter in _SLASHES:
            letters.append("/")
        elif letter in _SPACES:
            letters.append(" ")
        elif "⁄" in parts and letter != "⁄":  # a vulgar fraction
            letters.append(" " + parts.replace("⁄", "/"))
        else:
            letters.append({"，": ",", "．": ".", "％": "%", "٫": ".", "٬": ",", "$": "$"}.get(letter, letter))
    # "- 3/4" of "-\frac{3}{4}" is one number
    return re.sub(r"(?<![\w)\]])-\s+(?=\d+/)", "-", "".join(letters))


def _value(match: re.Match) -> Fraction | None:
    digits, whole = match["digits"], Fraction(0)
    negative = "-" in (match["sign"] or "") or match["inner"] is not None
    if match["denominator"] is not None and (mixed := _MIXED.match(digits)) is not None:
        whole, digits = Fraction(_integer(mixed[1])), mixed[2]  # 2 1/2
    elif " " in digits and not _groups(digits, " "):
        digits, negative = digits.rpartition(" ")[2], False  # two numbers side by side
    value = _decimal(digits)
    if value is None:
        return None
    exponent = match["exponent"] or match["power"]
    if exponent is not None:
        if abs(int(exponent[:8])) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** int(exponent)
    if match["denominator"] is not None:
        denominator = _integer(match["denominator"])
        if denominator == 0:
            return None
        value /= denominator
    return -(whole + value) if negative else whole + value


def _decimal(digits: str) -> Fraction | None:
    """The value of digits with marks between them."""
    digits = re.sub("['’_ ]", "", digits)
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and point >= 0:
        mark = "," if comma > point else "."
    elif digits.count(",") == 1 and (not _groups(digits, ",") or digits.startswith("0")):
        mark = ","
    elif digits.count(".") == 1:
        mark = "."
    else:
        mark = ""
    whole, fraction = digits, ""
    if mark:
        whole, _, fraction = digits.rpartition(mark)
    whole = re.sub("[,.]", "", whole)
    return Fraction(_integer(whole + fraction or "0"), 10 ** len(fraction))


def _groups(digits: str, mark: str) -> bool:
    """Whether marks group thousands: by three, or by two and at the end by three as in India."""
    first, *others = re.split(re.escape(mark), digits if mark == "." else re.sub(_DECIMALS[mark], "", digits))
    if not 1 <= len(first) <= 3 or not others or len(others[-1]) != 3:
        return False
    return all(len(group) == 3 for group in others) or (mark == "," and all(len(group) == 2 for group in others[:-1]))


def _integer(digits: str) -> int:
    """An int of any number of digits: Python refuses to read more than 4,300 at once."""
    value = 0
    for start in range(0, len(digits), 4000):
        part = digits[start : start + 4000]
        value = value * 10 ** len(part) + int(part)
    return value
