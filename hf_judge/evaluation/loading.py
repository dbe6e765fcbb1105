"""Loads the models, tokenizers and texts that a command names, with one error for whatever their files hold.

What upstream raises about a damaged file has any type and says little; the error here says what could not be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hf_judge.evaluation.evaluate import Pair
from hf_judge.head.compatibility import check_fit, check_pair, draft_tokenizer_of
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.responses import LabelledResponse, read_named
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM
from hf_judge.speculators.auto import AutoDraftModel, is_eagle3
from hf_judge.tiny.pair import load_pair

DEPTH = 24  # layers of the embedded target, unless a command chooses another number


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Raise errors of the block as "`what` cannot be loaded"; OSError and ValueError already say it and pass.

    Args:
        what: name of what is loaded, for the error.

    Raises:
        ValueError: the block raised an error of another type.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, SafetensorError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what} cannot be loaded ({type(error).__name__}: {reason:.200}): are its files whole?"
        ) from error


def load_tokenizers(
    target: str, draft: str, tokenizer: str | None = None, draft_tokenizer: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Load the tokenizers of a target and its draft, each of which must read the ids of the other.

    Args:
        target, draft: Hub ids or directories of the models.
        tokenizer, draft_tokenizer: those of their tokenizers, where they do not lie beside the models.

    Raises:
        ValueError, OSError: a tokenizer cannot be loaded, or the two disagree.
    """
    of_target = load_tokenizer(tokenizer or target)
    of_draft = load_draft_tokenizer(draft_tokenizer or draft, of_target)
    check_pair(of_target, of_draft)
    return of_target, of_draft


def load_draft_tokenizer(name: str, target_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a draft, or take the target's: see [`hf_judge.head.compatibility.draft_tokenizer_of`].

    Raises:
        ValueError, OSError: the tokenizer cannot be loaded.
    """
    if is_eagle3(name):
        return target_tokenizer  # such a draft drafts the target's own tokens
    with loading(f"the tokenizer of '{name}'"):
        return draft_tokenizer_of(name, target_tokenizer)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        ValueError, OSError: the tokenizer cannot be loaded.
    """
    with loading(f"the tokenizer of '{name}'"):
        return AutoTokenizer.from_pretrained(name)


def load_models(
    target: str | None = None,
    draft: str | None = None,
    *,
    judges: list[str] | None = None,
    autojudge: str | None = None,
    diversed: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    depth: int | None = None,
    takes_eagle3: bool = False,
    tokenizer: str | None = None,
    draft_tokenizer: str | None = None,
) -> Pair:
    """Load the pair to measure: without arguments the embedded one.

    Args:
        target, draft: Hub ids or directories.
        judges: directories or Hub ids of heads; the first is the rule "judge", further ones "judge:NAME".
        autojudge, diversed: directory or Hub id of the head of the rule of this name.
        dtype, device_map: arguments of `from_pretrained`, for both models.
        depth: layers of the embedded target, which change its speed, not its answers.
        takes_eagle3: whether `draft` may be an EAGLE-3 draft, which cannot write anything by itself.
        tokenizer, draft_tokenizer: see [`load_tokenizers`].

    Raises:
        ValueError: only one of target and draft is given, two judges share a name, or the tokenizers disagree.
    """
    if target is None and (tokenizer or draft_tokenizer):
        raise ValueError(
            "--tokenizer and --draft-tokenizer go with --target and --draft: the embedded pair has its own"
        )
    if depth is not None and target is not None:
        raise ValueError("--depth is of the embedded pair: leave it out with --target")
    if (target is None) != (draft is None):
        raise ValueError("pass both --target and --draft, or neither for the embedded pair")
    if target is None:
        tiny = load_pair(DEPTH if depth is None else depth)
        n_layers = tiny.target.config.num_hidden_layers
        pair = Pair(tiny.target, tiny.draft, tiny.tokenizer, name=f"the embedded pair, {n_layers} layers")
        judges = [tiny.judge] if judges is None else judges
    else:
        options = {"dtype": dtype} | ({} if device_map is None else {"device_map": device_map})
        tokenizers = load_tokenizers(target, draft, tokenizer, draft_tokenizer)
        with loading(f"the model '{target}'"):
            big = AutoJudgeModelForCausalLM.from_pretrained(target, **options).eval()
        with loading(f"the model '{draft}'"):
            if is_eagle3(draft):
                if not takes_eagle3:
                    raise ValueError(
                        f"'{draft}' is an EAGLE-3 draft, which runs beside its target alone, and this command runs the "
                        "draft by itself: pass an ordinary draft model here; `hf-judge evaluate` and generate() take "
                        "EAGLE-3 drafts"
                    )
                small = AutoDraftModel.from_pretrained(draft, target=big)
            else:
                small = AutoModelForCausalLM.from_pretrained(draft, **options).eval()
        pair = Pair(big, small, tokenizers[0], name=f"target {target}, draft {draft}", draft_tokenizer=tokenizers[1])
    for number, directory in enumerate(judges or []):
        name = "judge" if number == 0 else f"judge:{Path(directory).name}"
        if name in pair.heads:
            raise ValueError(f"two judges are called {Path(directory).name!r}: rename the directory of one")
        pair.heads[name] = JudgeHead.from_pretrained(directory)
    for name, directory in (("autojudge", autojudge), ("diversed", diversed)):
        if directory is not None:
            pair.heads[name] = JudgeHead.from_pretrained(directory)
    for head in pair.heads.values():
        check_fit(head, pair.target)
    return pair


def load_texts(path: str | os.PathLike) -> list[tuple[str, LabelledResponse]]:
    """Load prompts and continuations from a JSONL file with `prompt` and `response`, with the names of their lines.

    Raises:
        ValueError: a line is broken, or there are no lines.
    """
    rows = list(read_named(path))
    if not rows:
        raise ValueError(f"{path} holds no texts: one JSON object a line with 'prompt' and 'response'")
    return rows
