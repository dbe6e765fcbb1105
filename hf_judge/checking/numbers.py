r"""Read numbers as people and models write them, exactly: no float, no limit on digits.

Notations: LaTeX (``\frac{3}{4}``, ``\boxed{}``, ``\text{}``, ``9{,}500``, ``\$``), digits of every script, grouped
digits, fractions and mixed numbers (3/4, ¾, 1 1/2, 1½, 1-1/2), scientific notation (1.5e3, ``1.5 \times 10^{3}``),
powers (2^10), signs of every kind, and currencies, percent signs and units around them. The number of a response is
what it marks as its answer, in the last ``\boxed{}`` or on a line ``#### 42``; else its last number. Answers and
references are read by the same rules:

- A single point is decimal: 1.234 is 1 + 234/1000. A single comma groups where one to three digits stand before it and
  three after (1,234 is 1234), and is decimal elsewhere (0,5 and 12,34 and 0,123).
- Where both stand, the last one is decimal (1,234.5 and 1.234,5). Of one kind, several group (1.234.567).
- Blanks of every width, apostrophes and underscores group; a point or comma beside them is decimal (1 234,567). Groups
  have three digits, or in India two and the last three (12,34,567; not with blanks). Digits in no notation are read
  piece by piece.
- A percent sign, a currency and a unit are left out: 50% is 50. Words of magnitude count: 5 million is 5000000.
- A minus counts as a sign where no operand stands before it (-5, = - 5), not in 10-5 or "10 - 5".
- A digit that a letter or a power sign of a unit stands before is no number (H2O, m^2).
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from math import gcd
from typing import NamedTuple

from hf_judge.checking.spelling import plain

MAX_EXPANDED = 20_000  # powers of 2 or 5 up to which a number is a fraction; greater ones stay symbolic
MAX_POWER_BITS = 1 << 17
MAX_PRINTED_BITS = 1 << 13


class HugeNumber(NamedTuple):
    """Holds a number too long to write out: numerator / denominator * 2^twos * 5^fives, in lowest terms."""

    numerator: int
    denominator: int
    twos: int
    fives: int


class ExactNumber(Fraction):
    """Holds a fraction that also equals a `Decimal` of its value, and prints in short whatever its length."""

    def __eq__(self, other: object) -> bool:
        return super().__eq__(Fraction(other) if isinstance(other, Decimal) and other.is_finite() else other)

    __hash__ = Fraction.__hash__

    def __repr__(self) -> str:
        return f"ExactNumber({self})"

    def __str__(self) -> str:
        bits = max(self.numerator.bit_length(), self.denominator.bit_length())
        return super().__str__() if bits <= MAX_PRINTED_BITS else f"a number of {bits} bits"


Number = ExactNumber | HugeNumber

# --- the pieces of a number -------------------------------------------------------------------------------------------

# digits and what may group them; blanks only in the strict form, since they also stand between numbers
_RUN = r"(?:[1-9]\d{0,2}(?: \d{3}(?!\d))+(?:[.,]\d+)?|\d(?:[\d.,'_]*\d)?|(?<![\d.,])\.\d+)"
_BRACED = r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}"
_FRAC = rf"\\frac\s*(?:{_BRACED}|\d)\s*(?:{_BRACED}|\d)"
_TOKEN = re.compile(rf"(?P<frac>{_FRAC})|(?P<run>{_RUN})|(?P<unreadable>\\(?:sqrt|pi|infty|frac)(?![A-Za-z])|[√π∞])")
_GROUPED = re.compile(r"\d{1,3}(?:(?P<sep>[.,' _])\d{3})(?:(?P=sep)\d{3})*")
_INDIAN = re.compile(r"\d{1,2}(?:(?P<sep>[.,' _])\d{2})(?:(?P=sep)\d{2})*(?P=sep)\d{3}")
_EXPONENT = re.compile(r"[eE]([+-]?\d+)(?!\d)|[eE]\{([+-]?\d+)\}")
_TIMES_TEN = re.compile(r"\s*[×x*·]\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\s*\d+)\s*\}|([+-]?\d+))")
_POWER = re.compile(r"\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\s*\d+)\s*\}|\(\s*([+-]?\s*\d+)\s*\)|([+-]?\d+))")
_BOXED = re.compile(r"\\f?boxed(?:\s*\{|\s+(?=\S))|\\fbox\s*\{")
_OVERLINE = re.compile(r"\.?(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_SLASH = re.compile(r"\s*/\s*")
_AND = re.compile(r"\s+and\s+|\s+|-(?=\d+/\d)")
_MAGNITUDES = {
    "thousand": 3, "million": 6, "millions": 6, "mio": 6, "billion": 9, "billions": 9, "bn": 9, "trillion": 12,
    "trillions": 12, "quadrillion": 15, "lakh": 5, "lakhs": 5, "crore": 7, "crores": 7,
}  # fmt: skip
_MAGNITUDE = re.compile(
    rf"[ -]?({'|'.join(sorted(_MAGNITUDES, key=len, reverse=True))})(?![A-Za-z])|([kK])(?![\w^])", re.IGNORECASE
)
_SIGN = re.compile(
    r"(?P<sign>[+-])?(?P<gap>\s*)(?P<mark>(?:[A-Z]{0,3}\$|[A-Z]{3}\s?|Rs\.?)?)\s*(?P<inner>[+-]?)(?P<space>\s*)[({]?\s*$"
)
_SAYS = re.compile(r"(?:\b(?:is|are|was|be|equals|becomes|gives)|是)$")  # a spaced minus after it is a sign


class _Value(NamedTuple):
    """Holds a number while it is read: numerator / denominator * 10^exponent."""

    numerator: int
    denominator: int = 1
    exponent: int = 0


class Found(NamedTuple):
    """Places a number in a text; `value` is None for an expression that cannot be read, as a root."""

    value: Number | None
    start: int
    end: int


def read_number(value: object) -> Number | None:
    """Read the number that a whole value stands for: a reference, or an answer without the text around it.

    Args:
        value: text, or a number of Python or JSON.

    Returns:
        Number or None: None where the value holds no number, or one that cannot be read.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return ExactNumber(value)
    if isinstance(value, HugeNumber):
        return value
    if isinstance(value, Fraction):
        return ExactNumber(value)
    if isinstance(value, float):
        value = repr(value)  # the digits that were written, not the nearest double
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        sign, digits, exponent = value.as_tuple()
        return _reduced(_Value((-1) ** sign * parse_digits("".join(map(str, digits))), 1, exponent))
    return last_number(value) if isinstance(value, str) else None


def last_number(text: str) -> Number | None:
    r"""Read the number of the last ``\boxed{}`` or ``#### `` line of a text, else the last number in it.

    Returns:
        Number or None: None without a number, or where the last one cannot be read (a root, pi, a division by 0).
    """
    marked = marked_answer(text)
    if marked is not None:
        found = find_numbers(marked)
        if found:
            return found[-1].value
    found = find_numbers(text)
    return found[-1].value if found else None


def whole_number(text: str) -> Number | None:
    """Read a text that is one number, apart from blanks, dollar signs, brackets and a full stop; else return None."""
    found, spelled = find_numbers(text), plain(text)
    if len(found) != 1:
        return None
    rest = spelled[: found[0].start] + spelled[found[0].end :]
    return None if re.search(r"[^\s$(){}.*]", rest) else found[0].value


def marked_answer(text: str) -> str | None:
    r"""Return what a text marks as its answer, in the last ``\boxed{}`` or after the last ``####``; the later one."""
    best, at = None, -1
    for found in _BOXED.finditer(text):
        if found[0].endswith("{"):
            end = _closing(text, found.end())
            content = text[found.end() : end]
        else:
            content = text[found.end() :].split(None, 1)[0]
        if content.strip():
            best, at = content, found.start()
    for found in re.finditer(r"^[ \t]*####[ \t]*(\S[^\n]*?)[ \t]*$", text, re.MULTILINE):
        if found.start() > at and _is_one_number(found[1]):
            best, at = found[1], found.start()
    return best


def _is_one_number(text: str) -> bool:
    """Return whether a line holds one number and is no heading, as "#### 2. Add them" or "#### Step 2"."""
    found = find_numbers(text)
    if len(found) != 1:
        return False
    before, after = plain(text)[: found[0].start], plain(text)[found[0].end :]
    return not re.search(r"[A-Za-z]{4}", before) and not re.match(r"[.):]\s+\S", after)


def _closing(text: str, start: int) -> int:
    """Return the place of the brace that closes the one before `start`, or the end of the text."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text)


def find_numbers(text: str) -> list[Found]:
    """Find all numbers of a text, from left to right; places are those in `plain(text)`."""
    text, at, found = plain(text), 0, []
    while (token := _TOKEN.search(text, at)) is not None:
        one = _read_at(text, token, at)
        if one is None:
            if token["run"] is not None and not _is_attached(text, token.start()):
                found += [Found(_reduced(value), *place) for value, place in _pieces(token)]
            at = token.end()
            continue
        found.append(one)
        at = max(one.end, token.start() + 1)
    return found


def _pieces(token: re.Match) -> list[tuple[_Value, tuple[int, int]]]:
    """Read the numbers of a run that is in no notation as a whole: 1,2,3 and 1.5,2.5 and 1.2.3."""
    for separators in (r"[^,]+", r"[^.,'_ ]+"):
        pieces = list(re.finditer(separators, token["run"]))
        values = [_decimal(piece[0]) for piece in pieces]
        if all(value is not None for value in values) and len(values) > 1:
            places = [(token.start() + piece.start(), token.start() + piece.end()) for piece in pieces]
            return list(zip(values, places, strict=True))
    return []


def _read_at(text: str, token: re.Match, floor: int) -> Found | None:
    """Read the number that begins at a token; its sign stands at `floor` or later. None: it is no number."""
    start = token.start()
    if token["unreadable"] is not None:
        end = token.end()
        rest = re.compile(rf"\s*(?:\[[^\]]*\])?\s*(?:{_BRACED}|\d+)").match(text, end)
        return Found(None, start, rest.end() if rest and token[0] not in ("\\pi", "π", "∞") else end)
    if token["run"] is not None and _is_attached(text, start):
        return None
    value, end = _atom(text, token)
    if value is None and token["run"] is not None and end < 0:
        return None
    value, end = _continued(text, value, start, end, is_run=token["run"] is not None)
    negative, start = _sign(text, start, floor)
    if value is None:
        return Found(None, start, end)
    return Found(_reduced(value._replace(numerator=-value.numerator) if negative else value), start, end)


def _is_attached(text: str, start: int) -> bool:
    """Return whether a letter, or the power sign of a unit, stands right before: H2O, m^2, x_1."""
    before = text[max(0, start - 4) : start]
    if not before:
        return False
    if before[-1] == "{":
        before = before[:-1]
    if before[-1:] in ("^", "_") and before[-2:-1] not in ("", " ", "_", "*"):
        return True
    last = before[-1:]
    if not last.isalpha():
        return False
    if re.search(r"(?:^|[^A-Za-z])(?:[A-Z]{3}|Rs)$", before):
        return False  # USD5
    return _sets_words_apart(last)


def _sets_words_apart(letter: str) -> bool:
    """Return whether a letter's script writes blanks between words; then it belongs to the digits after it."""
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _atom(text: str, token: re.Match) -> tuple[_Value | None, int]:
    r"""Read a run of digits or a \frac, and return its value and its end; an end of -1: no number at all."""
    if token["frac"] is not None:
        parts = re.findall(rf"{_BRACED}|\d", token["frac"][len("\\frac") :])
        over, under = (_whole(part.removeprefix("{").removesuffix("}")) for part in parts[:2])
        return _divided(over, under), token.end()
    run, start = token["run"], token.start()
    for part in dict.fromkeys((run, run.partition(" ")[0])):  # blanks may stand between two numbers
        value = _decimal(part)
        if value is not None:
            return _with_overline(text, part, value, start + len(part))
    return None, -1


def _decimal(run: str) -> _Value | None:
    """Read digits and what groups them, by the rules above; None where they are in no notation."""
    digits = run.replace("_", "'") if "_" in run else run
    if digits.startswith("."):
        return _value(digits[1:], len(digits) - 1) if digits[1:].isdigit() else None
    if digits.isdigit():
        return _value(digits, 0)
    groupers = {c for c in digits if c in "' "}
    last = max(digits.rfind("."), digits.rfind(","))
    whole, fraction = digits, ""
    if last >= 0:
        mark, others = digits[last], digits[:last]
        both = ({".", ","} - {mark}).pop() in others
        is_grouped = mark == "," and _GROUPED.fullmatch(digits) and not digits.startswith("0")
        if both or groupers or (digits.count(mark) == 1 and not is_grouped):
            whole, fraction = digits[:last], digits[last + 1 :]
    if not fraction.isdigit() and fraction:
        return None
    if not whole.isdigit() and not (_GROUPED.fullmatch(whole) or _INDIAN.fullmatch(whole)):
        return None
    if not whole.isdigit() and whole.startswith("0"):
        return None
    return _value(re.sub(r"\D", "", whole) + fraction, len(fraction))


def _value(digits: str, n_decimals: int) -> _Value:
    stripped = digits.rstrip("0")
    return _Value(parse_digits(stripped or "0"), 1, len(digits) - len(stripped) - n_decimals)


def parse_digits(digits: str) -> int:
    """Read an integer of any number of digits in halves, below Python's limit against quadratic time."""
    if len(digits) <= 4000:
        return int(digits)
    half = len(digits) // 2
    return parse_digits(digits[:-half]) * 10**half + parse_digits(digits[-half:])


def _with_overline(text: str, run: str, value: _Value, end: int) -> tuple[_Value, int]:
    r"""Add the period of 0.1\overline{6}, which is 0.1666..., and return the value and its end."""
    found = _OVERLINE.match(text, end)
    if found is None or ("." in run) == text[end : end + 1].startswith("."):
        return value, end
    fixed, period = found[1], found[2] or found[3]
    n_fixed = len(fixed) + len(run.partition(".")[2])
    over = parse_digits((run.replace(".", "") + fixed) or "0") * (10 ** len(period) - 1) + parse_digits(period)
    return _Value(over, 10 ** len(period) - 1, -n_fixed), found.end()


def _continued(text: str, value: _Value | None, start: int, end: int, *, is_run: bool) -> tuple[_Value | None, int]:
    """Add what stands after a value: exponent, power, fraction line, the fraction of a mixed number."""
    if is_run and (found := _EXPONENT.match(text, end)):
        value, end = _shifted(value, _exponent(found)), found.end()
    if found := _TIMES_TEN.match(text, end):
        value, end = _shifted(value, _exponent(found)), found.end()
    elif found := _POWER.match(text, end):
        value, end = _power(value, _exponent(found)), found.end()
    whole = text[start:end]
    if is_run and whole.isdigit() and (found := _AND.match(text, end)):
        fraction, after = _fraction_at(text, found.end(), glued=False)
        if fraction is not None and fraction < 1:
            return _added(value, fraction), after
    elif is_run and whole.isdigit():
        fraction, after = _fraction_at(text, end, glued=True)
        if fraction is not None:
            return _added(value, fraction), after
    if is_run and (found := _SLASH.match(text, end)):
        under, after = _operand(text, found.end())
        if (
            under is not None
            and not re.compile(r"\s*/\s*\d").match(text, after)
            and text[max(0, start - 8) : start].rstrip()[-1:] != "/"
        ):
            return _divided(value, under), after
    if found := _MAGNITUDE.match(text, end):
        if found[2] is None:
            value, end = _shifted(value, _MAGNITUDES[found[1].lower()]), found.end()
        elif is_run:
            value, end = _shifted(value, 3), found.end()
    return value, end


def _operand(text: str, start: int) -> tuple[_Value | None, int]:
    """Read a number that stands right here, as under a fraction line."""
    token = _TOKEN.match(text, start)
    if token is None or token["run"] is None:
        return None, start
    value, end = _atom(text, token)
    return (None, start) if value is None else (value, end)


def _fraction_at(text: str, start: int, *, glued: bool) -> tuple[Fraction | None, int]:
    r"""Read a positive fraction of short numbers that stands right here: 1/2 (unless glued) or \frac{1}{2}."""
    value, end = None, start
    if re.compile(_FRAC).match(text, start):
        value, end = _atom(text, _TOKEN.match(text, start))
    elif not glued and (found := re.compile(r"(\d+)\s?/\s?(\d+)(?![\d/.,]\d|\s*/)").match(text, start)):
        value, end = _divided(_value(found[1], 0), _value(found[2], 0)), found.end()
    if value is None or value.numerator <= 0 or abs(value.exponent) > MAX_EXPANDED:
        return None, start
    return _fraction(value), end


def _fraction(value: _Value) -> Fraction:
    return value.numerator * Fraction(10) ** value.exponent / value.denominator


def _sign(text: str, start: int, floor: int) -> tuple[bool, int]:
    """Return whether a number is negative, and where it begins with its sign and currency."""
    window = max(floor, start - 24)
    before = text[window:start]
    found = _SIGN.search(before)
    inner, sign = found["inner"], found["sign"]
    if inner and (found["mark"] or sign is None):
        at = window + found.start("inner")
        if found["mark"].strip() and not found["space"]:
            return inner == "-", window + found.start("mark")
        return _counts(text, at, bool(found["space"])) and inner == "-", at
    if sign:
        at = window + found.start("sign")
        return _counts(text, at, bool(found["gap"]) and not found["mark"]) and sign == "-", at
    return False, start


def _counts(text: str, at: int, spaced: bool) -> bool:
    """Return whether a plus or minus is a sign: no operand stands before it, and it is no bullet or dash."""
    line = text[max(0, at - 64) : at]
    last = line.rstrip(" \t")[-1:]
    if not last:
        return True
    if last == "\n":
        return not spaced
    if last in "=<>≤≥≈~:([{|&×*/^+-$,;":
        return not (last == "$" and re.search(r"[\w)\]}]\$$", line.rstrip()) and not spaced)
    if spaced:
        return _SAYS.search(line.rstrip()) is not None
    return line[-1:].isspace() or not (last.isdigit() or _sets_words_apart(last) or last in ")]}%°'\"!")


def _whole(text: str) -> _Value | None:
    """Read a text that is one number and nothing else, as in a LaTeX fraction."""
    text = text.strip()
    negative = text.startswith("-")
    text = text.lstrip("+-").strip(" $")
    token = _TOKEN.match(text)
    if token is None or token["unreadable"] is not None:
        return None
    value, end = _atom(text, token)
    if value is None:
        return None
    value, end = _continued(text, value, 0, end, is_run=token["run"] is not None)
    if value is None or re.search(r"[^\s%$°]", text[end:]):
        return None
    return value._replace(numerator=-value.numerator) if negative else value


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _exponent(found: re.Match) -> int:
    """Return the integer in the one group that matched."""
    text = next(filter(None, found.groups())).replace(" ", "")
    return (-1 if text.startswith("-") else 1) * parse_digits(text.lstrip("+-"))


def _shifted(value: _Value | None, places: int) -> _Value | None:
    return None if value is None else value._replace(exponent=value.exponent + places)


def _power(value: _Value | None, n: int) -> _Value | None:
    """Return value^n; None for a power too long to compute, and for 0 to a power of 0 or less."""
    if value is None or (value.numerator == 0 and n <= 0):
        return None
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
    if size > 1 and size * abs(n) > MAX_POWER_BITS:
        return None
    over, under = value.numerator ** abs(n), value.denominator ** abs(n)
    return _Value(*((over, under) if n >= 0 else (under, over)), value.exponent * n)


def _divided(over: _Value | None, under: _Value | None) -> _Value | None:
    if over is None or under is None or under.numerator == 0:
        return None
    sign = -1 if under.numerator < 0 else 1
    return _Value(
        sign * over.numerator * under.denominator,
        sign * over.denominator * under.numerator,
        over.exponent - under.exponent,
    )


def _added(value: _Value, part: Fraction) -> _Value | None:
    """Return the value of a mixed number."""
    if abs(value.exponent) > MAX_EXPANDED:
        return None
    total = _fraction(value) + part
    return _Value(total.numerator, total.denominator)


def _reduced(value: _Value) -> Number:
    """Bring a value into its one form: an ExactNumber, or where that would be too long a HugeNumber."""
    if value.numerator == 0:
        return ExactNumber(0)
    divisor = gcd(value.numerator, value.denominator)
    over, under = value.numerator // divisor, value.denominator // divisor
    if abs(value.exponent) <= MAX_EXPANDED // 2:
        return ExactNumber(over * Fraction(10) ** value.exponent / under)
    (over, twos), (under, twos_under) = _without(over, 2), _without(under, 2)
    (over, fives), (under, fives_under) = _without(over, 5), _without(under, 5)
    twos, fives = value.exponent + twos - twos_under, value.exponent + fives - fives_under
    if max(abs(twos), abs(fives)) <= MAX_EXPANDED:
        return ExactNumber(over * Fraction(2) ** twos * Fraction(5) ** fives / under)
    return HugeNumber(over, under, twos, fives)


def _without(n: int, prime: int) -> tuple[int, int]:
    """Take the factors of a prime out of a number, by squaring since there may be thousands, and count them."""
    powers = [prime]
    while n % powers[-1] == 0:
        powers.append(powers[-1] ** 2)
    count = 0
    for i in reversed(range(len(powers))):
        while n % powers[i] == 0:
            n, count = n // powers[i], count + (1 << i)
    return n, count
