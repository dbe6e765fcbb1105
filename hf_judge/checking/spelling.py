"""Give signs, blanks, digits of every script and LaTeX commands that mean the same one spelling."""

from __future__ import annotations

import re
import unicodedata

_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_IGNORED = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u061c\ufeff" + "".join(
    map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
)
_TRANSLATED = {
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _IGNORED), ""),
    **dict.fromkeys(map(ord, "\u2212\ufe63\uff0d\u2010\u2011\u2012\u2013\u02d7\u207b\u208b"), "-"),
    **dict.fromkeys(map(ord, "\uff0b\ufe62"), "+"),
    **dict.fromkeys(map(ord, "\u2019\u2018\u02bc\u02b9\uff07"), "'"),
    **dict.fromkeys(map(ord, "\uff0e\u066b\u2396"), "."),
    **dict.fromkeys(map(ord, "\uff0c\u066c\ufe50"), ","),
    **dict.fromkeys(map(ord, "\u2044\u2215\uff0f\u00f7"), "/"),
    **dict.fromkeys(map(ord, "\u00d7\u22c5\u2217\u2715\u2a2f\uff0a"), "×"),
    **dict.fromkeys(map(ord, "\uff1d"), "="),
    **dict.fromkeys(map(ord, "\uff08"), "("),
    **dict.fromkeys(map(ord, "\uff09"), ")"),
    **dict.fromkeys(map(ord, "\uff05\ufe6a\u066a"), "%"),
    **dict.fromkeys(map(ord, "\uff3e"), "^"),
    **dict.fromkeys(map(ord, "\uff45"), "e"),
    **dict.fromkeys(map(ord, "\uff25"), "E"),
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_ARABIC_DECIMAL = "\u066b"
_LATEX = (
    (re.compile(r"\\(?:d|t|c|x)?frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\{([.,])\}(?:\\!)?"), r"\1"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[$%&#_]"), lambda found: found[0][1]),
    (re.compile(r"\\(?:[,;:> ]|thinspace|q?quad|nobreakspace)|(?<!~)~(?!~)"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "×"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\pounds(?![A-Za-z])"), "£"),
    (re.compile(r"\\(?:euro|texteuro)(?![A-Za-z])"), "€"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\[()\[\]]"), " "),
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox|bf|rm|operatorname\*?|underline"
    r"|displaystyle|boxed|fbox|ensuremath|num|emph|bm|boldsymbol)\s*"
    r"\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}"
)


def plain(text: str) -> str:
    """Return the text with one spelling for every sign, blank, digit and LaTeX command that means the same."""
    if not text.isascii():
        text = re.sub(rf"(?<=\d){_ARABIC_DECIMAL}(?=\d)", ".", text)
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: f"^{found[0].translate(_SUPERSCRIPTS)} ", text)
        text = re.sub(r"(?<=\D\s)\u2014(?=\d)", "-", text)
        text = "".join(map(_ascii, text)).translate(_TRANSLATED)
    if "\\" in text or "{" in text or "~" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
        text = re.sub(r"\^\s*\{\s*([+-]?)\s*(\d+)\s*\}", r"^\1\2 ", text)
        before = None
        while before != text:
            before, text = text, _WRAPPER.sub(_unwrapped, text)
    return text


def _unwrapped(found: re.Match) -> str:
    """Return what a LaTeX command wraps, between blanks; the power of a unit stays with it."""
    after = found.string[found.end() : found.end() + 1]
    return f" {found[1]}" if after == "^" else f" {found[1]} "


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', character).replace(chr(0x2044), '/')} "
    return "$" if unicodedata.category(character) == "Sc" else character
