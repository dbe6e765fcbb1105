"""Turn spans of mistakes into one label per token, through the tokenizer's offsets.

Tokens before the first mistake are acceptable (1), the mistaken ones are not (0); what follows carries no label (-1),
since being right after a mistake has no clear meaning (Judge Decoding, arXiv 2501.19309, section 3). An example whose
tokens cannot be lined up with its text is skipped and counted: a label never moves to a neighbouring token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from hf_judge.files.jsonl import listed
from hf_judge.labelling.prompts import RefusedPrompt, encode_prompt
from hf_judge.labelling.responses import LabelledResponse

ACCEPTABLE, MISTAKEN, IGNORED = 1, 0, -1
AFTER_MISTAKE = ("ignore", "mistaken")
ON_CUT_TOKEN = ("mistaken", "skip")
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding shows for the first bytes of a character


@dataclass
class TokenLabels:
    """Holds an example as a model reads it."""

    input_ids: list[int]  # prompt and response
    labels: list[int]  # one per input id: 1 acceptable, 0 mistaken, -1 no label (the whole prompt)
    n_prompt: int  # ids of the prompt
    row: int  # number of the example in the data, from 0 on


@dataclass
class LabelReport:
    """Counts what became of the examples."""

    n_rows: int = 0
    n_labelled: int = 0  # examples that were used
    n_acceptable: int = 0  # tokens
    n_mistaken: int = 0  # tokens
    n_cut_tokens: int = 0  # tokens that a span cuts inside a word
    skipped: Counter = field(default_factory=Counter)  # number of examples by reason
    first_skipped: dict = field(default_factory=dict)  # number of the first example, from 1 on, by reason
    skipped_rows: list[tuple[str, str]] = field(default_factory=list)  # name of the example, and the reason

    def __str__(self) -> str:
        lines = [
            f"{self.n_labelled} of {self.n_rows} rows: {self.n_acceptable} acceptable and {self.n_mistaken} mistaken "
            f"tokens ({self.n_cut_tokens} cut by a span)"
        ]
        lines += [f"skipped {n} rows: {why} (first: row {self.first_skipped[why]})" for why, n in self.skipped.items()]
        lines += listed(self.skipped_rows)
        return "\n".join(lines)


class UnlabelledRow(ValueError):
    """Says why an example cannot be labelled faithfully; reports count its text."""


def label_rows(
    rows: Iterable[LabelledResponse],
    tokenizer: PreTrainedTokenizerBase,
    *,
    after_mistake: str = "ignore",
    on_cut_token: str = "mistaken",
    max_length: int | None = None,
    names: Sequence[str] | None = None,
    strict: bool = False,
) -> tuple[list[TokenLabels], LabelReport]:
    """Label the tokens of every example.

    Args:
        rows: the labelled responses.
        tokenizer: the target's tokenizer.
        after_mistake: "ignore" gives tokens after the first mistake no label, "mistaken" labels them 0 as some others
            do (AutoJudge's re-implementation of the paper).
        on_cut_token: what to do where a span cuts a token inside a word: "mistaken" labels the whole token so, "skip"
            skips the example.
        max_length: largest number of tokens, prompt included; longer examples are skipped.
        names: names of the examples in reports, as "data.jsonl, line 3"; None: "row 3".
        strict: stop at the first example that would be skipped.

    Returns:
        The labelled examples, and the report of what was skipped and why.

    Raises:
        ValueError: an option is unknown; with `strict`, an example cannot be labelled.
    """
    for name, value, known in (
        ("after_mistake", after_mistake, AFTER_MISTAKE),
        ("on_cut_token", on_cut_token, ON_CUT_TOKEN),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    encoded, report = [], LabelReport()
    for number, row in enumerate(rows):
        report.n_rows += 1
        try:
            tokens, n_cut = _label(row, number, tokenizer, after_mistake)
            if n_cut and on_cut_token == "skip":
                raise UnlabelledRow("a span cuts a token inside a word")
            if max_length is not None and len(tokens.input_ids) > max_length:
                raise UnlabelledRow(f"longer than {max_length} tokens")
        except (UnlabelledRow, RefusedPrompt) as error:
            name = f"row {number + 1}" if names is None else names[number]
            if strict:
                raise ValueError(f"{name}: {error}") from None
            report.skipped[str(error)] += 1
            report.first_skipped.setdefault(str(error), number + 1)
            report.skipped_rows.append((name, str(error)))
            continue
        encoded.append(tokens)
        report.n_labelled += 1
        report.n_cut_tokens += n_cut
        report.n_acceptable += tokens.labels.count(ACCEPTABLE)
        report.n_mistaken += tokens.labels.count(MISTAKEN)
    return encoded, report


def label_offsets(
    offsets: list[tuple[int, int]],
    mistakes: Iterable[tuple[int, int]],
    *,
    scope: Iterable[tuple[int, int]] | None = None,
    after_mistake: str = "ignore",
) -> list[int]:
    """Label every token by the characters that it covers.

    Args:
        offsets: (start, end) of every token, in the response.
        mistakes: spans of mistakes; a token that shares a character with one is mistaken.
        scope: spans outside of which no token is labelled; None: all tokens are.
        after_mistake: "ignore" or "mistaken", see [`label_rows`].

    Returns:
        1, 0 or -1 for every token; -1 for tokens without characters.
    """
    mistakes = sorted(mistakes)
    first = mistakes[0][0] if mistakes else None
    labels = []
    for start, end in offsets:
        if start == end or (scope is not None and not _overlaps(start, end, scope)):
            labels.append(IGNORED)
        elif _overlaps(start, end, mistakes):
            labels.append(MISTAKEN)
        elif first is None or end <= first:
            labels.append(ACCEPTABLE)
        else:
            labels.append(IGNORED if after_mistake == "ignore" else MISTAKEN)
    return labels


def _label(row: LabelledResponse, number: int, tokenizer, after_mistake: str) -> tuple[TokenLabels, int]:
    if not row.response and not row.response_ids:
        raise UnlabelledRow("empty response")
    text, prompt_ids = encode_prompt(tokenizer, row.asked)
    if row.response_ids is not None:
        ids = list(row.response_ids)
        offsets = decoded_offsets(tokenizer, ids, row.response)
    else:
        ids, offsets = _encode_response(tokenizer, text, row.response)
    labels = label_offsets(offsets, row.mistakes, scope=row.scope, after_mistake=after_mistake)
    if row.mistakes and MISTAKEN not in labels:
        raise UnlabelledRow("no token covers the mistake")
    if all(label == IGNORED for label in labels):
        raise UnlabelledRow("no token to label")
    n_cut = sum(_is_cut(row.response, offset, row.mistakes) for offset in offsets)
    return TokenLabels(prompt_ids + ids, [IGNORED] * len(prompt_ids) + labels, len(prompt_ids), number), n_cut


def _encode_response(tokenizer, prompt: str, response: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return ids and offsets of the response as it continues the prompt."""
    bare = {"add_special_tokens": False}
    if not tokenizer.is_fast:
        prompt_ids, ids = tokenizer(prompt, **bare).input_ids, tokenizer(prompt + response, **bare).input_ids
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UnlabelledRow(_BOUNDARY)
        ids = ids[len(prompt_ids) :]
        return ids, decoded_offsets(tokenizer, ids, response)
    prompt_ids = tokenizer(prompt, **bare).input_ids
    whole = tokenizer(prompt + response, return_offsets_mapping=True, **bare)
    ids, offsets = whole.input_ids[len(prompt_ids) :], whole.offset_mapping[len(prompt_ids) :]
    if whole.input_ids[: len(prompt_ids)] != prompt_ids or any(a < len(prompt) and b > a for a, b in offsets):
        raise UnlabelledRow(_BOUNDARY)
    return ids, [(a - len(prompt), b - len(prompt)) if b > a else (0, 0) for a, b in offsets]


_BOUNDARY = (
    "the tokenizer merges the end of the prompt with the start of the response (no blank at the end of a prompt, or "
    "give response_ids)"
)


def decoded_offsets(tokenizer, ids: list[int], response: str) -> list[tuple[int, int]]:
    """Find the offsets of ids by decoding longer and longer prefixes of them.

    For ids that a model wrote, and for tokenizers without offsets.

    Args:
        tokenizer: the tokenizer of the ids.
        ids: n token ids.
        response: text of the ids, up to blanks at the start that some tokenizers drop.

    Returns:
        n pairs (start, end) in the response.

    Raises:
        UnlabelledRow: the ids do not decode to the response.
    """
    if tokenizer.is_fast:  # nearly always the ids are what the tokenizer itself would have written
        again = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        if again.input_ids == ids:
            return again.offset_mapping
    decode = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    whole = tokenizer.decode(ids, **decode)
    shift = len(response) - len(whole)
    if shift < 0 or response[:shift].strip() or response[shift:] != whole:
        raise UnlabelledRow("the response's tokens do not decode to its text (another tokenizer?)")
    offsets, before = [], 0
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n], **decode)
        complete = len(text.rstrip(INCOMPLETE)) if not whole.startswith(text) else len(text)
        if not whole.startswith(text[:complete]):
            raise UnlabelledRow("the tokenizer's decoding depends on what follows: no offsets")
        # a token that only begins a character belongs to that character
        end = complete + 1 if complete < len(text) else complete
        offsets.append((before + shift, max(end, before) + shift))
        before = complete
    return offsets


def _overlaps(start: int, end: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(a < end and b > start for a, b in spans)


def _is_cut(response: str, offset: tuple[int, int], mistakes: Iterable[tuple[int, int]]) -> bool:
    """Return whether a span covers a part of the token that is more than blanks, and leaves another such part."""
    start, end = offset
    for a, b in mistakes:
        inside = response[max(a, start) : min(b, end)]
        outside = response[start : min(max(a, start), end)] + response[max(min(b, end), start) : end]
        if a < end and b > start and inside.strip() and outside.strip():
            return True
    return False
