"""Models and tokenizers that a command names, with one error for whatever their files hold.

What upstream raises about a damaged file is of any type and says little: it is told as what could not be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_judge.head.compatibility import check_pair, draft_tokenizer_of


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Tell errors of the block as "`what` cannot be loaded"; those that say it already (OSError, ValueError) pass.

    Raises:
        ValueError: it cannot be.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, SafetensorError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what} cannot be loaded ({type(error).__name__}: {reason:.200}): are its files whole?"
        ) from error


def load_tokenizers(target: str, draft: str) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The tokenizers of a target and its draft, where the ids of one are read by the other.

    Raises:
        ValueError, OSError: one cannot be loaded, or they disagree.
    """
    tokenizer = load_tokenizer(target)
    draft_tokenizer = load_draft_tokenizer(draft, tokenizer)
    check_pair(tokenizer, draft_tokenizer)
    return tokenizer, draft_tokenizer


def load_draft_tokenizer(name: str, target_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a draft, or the target's: see [`hf_judge.head.compatibility.draft_tokenizer_of`].

    Raises:
        ValueError, OSError: it cannot be loaded.
    """
    with loading(f"the tokenizer of '{name}'"):
        return draft_tokenizer_of(name, target_tokenizer)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ValueError, OSError: it cannot be loaded.
    """
    with loading(f"the tokenizer of '{name}'"):
        return AutoTokenizer.from_pretrained(name)
