"""Check that a head belongs to a target, and that target and draft share their vocabulary.

The head's width must fit; weights and quantisation should be those that it was trained on. Weights are known by their
fingerprint (`hf_judge.head.fingerprint`); where there is none, the target's name and commit stand for them.
"""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.head.fingerprint import same_weights
from hf_judge.head.judge_head import JudgeHead
from hf_judge.upstream.forward import commit_of, vocabulary_rows
from hf_judge.upstream.generation import disagreement

logger = logging.getLogger(__name__)

# a directory that holds any of these holds a tokenizer
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model"),
)
_CACHED = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})")


def check_pair(target_tokenizer: PreTrainedTokenizerBase, draft_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse two models that do not share their vocabulary.

    The tokenizers decide; the models' matrices may have further rows after the last token.

    Raises:
        ValueError: an id stands for different words.
    """
    at = disagreement(target_tokenizer, draft_tokenizer)
    if at is not None:
        vocabularies = [tokenizer.get_vocab() for tokenizer in (target_tokenizer, draft_tokenizer)]
        ours, theirs = (next((repr(word) for word, i in v.items() if i == at), "nothing") for v in vocabularies)
        raise ValueError(
            f"the tokenizers disagree (target: {len(target_tokenizer)} tokens, draft: {len(draft_tokenizer)}; "
            f"id {at} is {ours:.40} to the target and {theirs:.40} to the draft): the draft's tokens must mean the "
            "same to the target; choose a draft of the target's family"
        )


def draft_tokenizer_of(draft: str, target_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a draft; where a directory holds a model alone, return the target's.

    Raises:
        ValueError, OSError: the tokenizer cannot be loaded.
    """
    directory = Path(draft)
    if directory.is_dir() and not any((directory / name).exists() for name in TOKENIZER_FILES):
        return target_tokenizer
    return AutoTokenizer.from_pretrained(draft)


def n_shared_tokens(tokenizer: PreTrainedTokenizerBase, *models: PreTrainedModel) -> int:
    """Count the ids, from 0 on, that are words of the tokenizer and rows of all models."""
    return min([max(tokenizer.get_vocab().values()) + 1, *map(vocabulary_rows, models)])


def check_fit(head: JudgeHead, model: PreTrainedModel) -> None:
    """Refuse a head that cannot read this target; warn, once, about a head that was trained for another.

    With `head.strict_base`, the warning is an error, and so is a target without a name.

    Raises:
        ValueError: the width differs, or `strict_base` and the target is not known to be the head's own.
    """
    name = model.config.name_or_path
    same = same_weights(head.config.fingerprint, model)
    if same is None:
        check_target(head, model.config.get_text_config().hidden_size, name, commit_of(model.config))
    else:
        check_width(head, model.config.get_text_config().hidden_size)
        _tell(head, None if same else _other_weights(head, name))
    _check_quantization(head, model)


def check_target(head: JudgeHead, hidden_size: int, name: str | None, commit: str | None) -> None:
    """Check a head as [`check_fit`] does, for a target that another library runs.

    Args:
        head: the head.
        hidden_size: width of the target's state.
        name: name that the target was loaded by: a repository, a directory, or a snapshot in the Hub's cache.
        commit: the target's commit, 40 hex digits; None: not known.

    Raises:
        ValueError: the cases of [`check_fit`].
    """
    check_width(head, hidden_size)
    base = head.config.base_model_name_or_path
    name, commit = _identity(name, commit)
    if not base or not name:
        if head.strict_base:
            unknown = "the head does not say" if not base else "the target does not say"
            raise ValueError(
                f"strict_base=True, but {unknown} which model it is: set strict_base=False, or load from the Hub"
            )
        return
    _tell(head, _other_target(head, name, commit))


def check_width(head: JudgeHead, hidden_size: int) -> None:
    """Refuse a head that was made for states of another width.

    Raises:
        ValueError: the width differs.
    """
    expected, base = head.config.hidden_size, head.config.base_model_name_or_path
    if expected != hidden_size:
        raise ValueError(
            f"head expects hidden size {expected}, target has {hidden_size}: it was trained for "
            f"'{base or 'an unnamed model'}'; load that target or train a head for this one"
        )


def check_draft(head: JudgeHead, draft: PreTrainedModel) -> None:
    """Warn, once, about a draft other than the one whose tokens the head learned to judge."""
    problem = _other_draft(head, draft)
    if problem:
        _warn_once(
            f"{problem}: the head has not seen this one's mistakes. Measure the accuracy, or label this draft's tokens"
        )


def _tell(head: JudgeHead, problem: str | None) -> None:
    """Warn, once, about another target, or refuse it where the head demands its own."""
    if problem and head.strict_base:
        raise ValueError(f"{problem}: load that one, or set strict_base=False")
    if problem:
        _warn_once(f"{problem}: its verdicts may mean nothing there. Load that one or measure the accuracy")


def doubts(head: JudgeHead, model: PreTrainedModel, draft: PreTrainedModel | None = None) -> list[str]:
    """Return what [`check_fit`] and [`check_draft`] warn about, one sentence each; empty where all belong together."""
    name, commit = _identity(model.config.name_or_path, commit_of(model.config))
    same = same_weights(head.config.fingerprint, model)
    if same is None:
        known = bool(head.config.base_model_name_or_path and name)
        other = _other_target(head, name, commit) if known else None
    else:
        other = None if same else _other_weights(head, name)
    found = [other, _other_quantization(head, model), None if draft is None else _other_draft(head, draft)]
    return [problem for problem in found if problem is not None]


def _other_weights(head: JudgeHead, name: str | None) -> str:
    base = head.config.base_model_name_or_path or "an unnamed model"
    return f"this judge head was trained for '{base}', and the weights of the target '{name or 'unnamed'}' are others"


def _other_draft(head: JudgeHead, draft: PreTrainedModel) -> str | None:
    """Return the difference between the draft that the head names and this one, or None."""
    expected, name = head.config.draft_name_or_path, _identity(draft.config.name_or_path, None)[0]
    same = same_weights(head.config.draft_fingerprint, draft)
    if same is None:
        same = not expected or not name or _same_name(expected, name)
    if same:
        return None
    return f"this judge head was trained for the draft '{expected or 'unnamed'}', this draft is '{name or 'unnamed'}'"


def _other_target(head: JudgeHead, name: str, commit: str | None) -> str | None:
    """Return the difference between the target that the head names and this one, or None."""
    base, base_commit = head.config.base_model_name_or_path, head.config.revision
    if not _same_name(base, name):
        return f"this judge head was trained for '{base}', the target is '{name}'"
    if base_commit and commit and re.fullmatch("[0-9a-f]{40}", base_commit) and base_commit != commit:
        return f"this judge head was trained for '{base}' at commit {base_commit}, the target is at {commit}"
    if head.strict_base and base_commit and not commit:
        return f"this judge head was trained for '{base}' at commit {base_commit}, the target's commit is not known"
    return None


def quantization_of(model: PreTrainedModel) -> str:
    """Return how the weights are quantised, as "bitsandbytes 8-bit"; "none" if they are not."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return "none"
    values = config if isinstance(config, dict) else config.to_dict()
    method = values["quant_method"]
    words = [str(getattr(method, "value", method))]
    if "bits" in values:  # gptq, awq, ...
        words.append(f"{values['bits']}-bit")
    elif values.get("load_in_8bit"):
        words.append("8-bit")
    elif values.get("load_in_4bit"):
        words.append(f"4-bit {values['bnb_4bit_quant_type']}")
    elif "quant_type" in values:  # torchao: a config object of its own
        kind = values["quant_type"]
        words.append(kind if isinstance(kind, str) else kind["default"]["_type"])
    elif isinstance(values.get("weights"), str):  # quanto
        words.append(values["weights"])
    return " ".join(words)


def _check_quantization(head: JudgeHead, model: PreTrainedModel) -> None:
    problem = _other_quantization(head, model)
    if problem is None:
        return
    if head.strict_base:
        raise ValueError(f"{problem}: load the target as it was, or set strict_base=False")
    _warn_once(f"{problem}: its states differ, and so may verdicts. Load the target as it was or measure the accuracy")


def _other_quantization(head: JudgeHead, model: PreTrainedModel) -> str | None:
    expected, actual = head.config.quantization, quantization_of(model)
    if expected is None or expected == actual:
        return None
    return (
        f"this judge head was trained on a target with quantization '{expected}', this target has quantization "
        f"'{actual}'"
    )


def _identity(name: str | None, commit: str | None) -> tuple[str | None, str | None]:
    """Return a target's name and commit, read from the path of a snapshot in the Hub's cache where it is one."""
    cached = _CACHED.search(str(name))
    if cached:
        return cached[1].replace("--", "/"), cached[2]
    return name, commit


def _same_name(base: str, name: str) -> bool:
    """Return whether two names are equal, or the second is a directory called like the repository."""
    return base == name or (Path(name).is_dir() and Path(name).resolve().name == base.rpartition("/")[2])


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
