"""Turns single tokens into pieces of text that add up to what the tokenizer decodes as a whole.

Decoding a token depends on its neighbours: a blank at the start is dropped, bytes are joined into characters, gaps
before punctuation are closed. So all tokens are decoded each time, and only text that cannot change is returned.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from the first bytes of a character
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a sentencepiece byte token; a run of byte tokens is decoded as one


class Detokenizer:
    """Returns the text of tokens as soon as the text is settled: no further token can change it.

    Args:
        tokenizer: tokenizer that decodes.
        skip_special_tokens: see its `decode`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids = []
        self._n_given = 0  # characters of the whole text that were returned
        self._whole = ""  # text of all tokens so far
        self._waiting = []  # for each token that has no text yet, the whole text up to and with it
        self._in_bytes = False  # whether the next token may still join a run of byte tokens

    def put(self, token: int) -> list[str]:
        """Take a token, and return the texts that are settled now.

        Returns:
            The texts of the oldest tokens without text, as far as they are settled: often the text of this very token,
            none while a character is incomplete. Text that several tokens make together belongs to the last of them.
        """
        self._ids.append(token)
        before, self._whole = self._whole, self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        self._waiting.append(self._whole)
        if self._whole != before:  # a token without text, such as a skipped one, ends no run
            self._in_bytes = self._is_byte(token)
        elif self._is_byte(token):
            self._in_bytes = True
        return self._settle(self._n_settled())

    def end(self) -> list[str]:
        """Return the texts of all tokens that have no text yet."""
        return self._settle(len(self._whole))

    def _n_settled(self) -> int:
        """Count the characters of the whole text that no further token can change."""
        if self._in_bytes:
            return -1  # a further byte may even change which token a text belongs to
        settled = self._whole.rstrip(INCOMPLETE)
        if self._tokenizer.clean_up_tokenization_spaces:
            # the last word, its blank and a quote before it may still be joined
            settled = settled[: max(settled.rstrip(" '").rfind(" "), 0)]
        return len(settled)

    def _is_byte(self, token: int) -> bool:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(piece, str) and _BYTE.fullmatch(piece) is not None

    def _settle(self, n_settled: int) -> list[str]:
        texts = []
        while self._waiting:
            behind = self._waiting[0]
            end = len(behind) if self._whole.startswith(behind) else _n_common(behind, self._whole)
            if len(self._waiting) == 1:
                end = len(self._whole)
            if end > n_settled:
                break
            del self._waiting[0]
            texts.append(self._whole[self._n_given : end])
            self._n_given = max(self._n_given, end)
        return texts


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool = False) -> list[str]:
    """Return the text that every token adds; a character of several tokens belongs to the last of them."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    texts = [text for token in ids for text in detokenizer.put(token)]
    return texts + detokenizer.end()


def _n_common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
