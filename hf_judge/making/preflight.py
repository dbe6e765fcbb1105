"""Looks at both models on a few prompts before any long work, and says why it would be wasted.

A wrong prompt format, a missing chat template, a checker for another task or swapped models look like this: the target
is wrong nearly always, or the draft is better than it. Labels made from such answers would be nonsense.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.checking.correctness import answer_is_right
from hf_judge.checking.statistics import changes, mcnemar_p
from hf_judge.labelling.greedy import greedy
from hf_judge.labelling.jobs import TASK_ERRORS
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.tasks.problems import Problems

N_SHOWN = 3
RARELY = 0.1  # a target that is right in fewer answers than this is wrong "nearly always"
FEW = 5  # of fewer answers nothing is said


class CannotPay(ValueError):
    """Says why it is of no use to go on; `force` goes on all the same."""


@dataclass(frozen=True)
class ModelAnswers:
    """What one model answered."""

    texts: list[str]
    tokens: list[list[int]]
    """Ids of each answer, with the stop token."""
    right: list[bool | None]
    """Whether each answer is right; None: the problem has no answer to compare with."""
    found: list[bool]
    """Whether the checker found any answer in the response."""
    seconds: float
    """Time of all answers together."""
    n_parameters: int

    @property
    def share_right(self) -> float | None:
        """Share of right answers among those that can be compared; None: there are none."""
        known = [value for value in self.right if value is not None]
        return sum(known) / len(known) if known else None

    @property
    def mean_length(self) -> float:
        """Mean number of tokens of an answer."""
        return sum(map(len, self.tokens)) / len(self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Speed in the batches of the preflight."""
        return sum(map(len, self.tokens)) / self.seconds


@dataclass(frozen=True)
class Preflight:
    """Both models on the first prompts."""

    prompts: list[str]
    target: ModelAnswers
    draft: ModelAnswers
    max_new_tokens: int
    refused: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what was seen, as lines of text: shares, lengths, speeds, and three answers of each model."""
        said = [f"{len(self.prompts)} prompts answered by both models:"]
        for name, model in (("target", self.target), ("draft", self.draft)):
            share = "no `answer` to compare with" if model.share_right is None else f"{model.share_right:.0%} right"
            said.append(
                f"  {name}: {share}, {model.mean_length:.0f} tokens per answer, "
                f"{model.tokens_per_second:.0f} tokens/s, {model.n_parameters / 1e6:.1f} M parameters"
            )
        for number, prompt in enumerate(self.prompts[:N_SHOWN]):
            said.append(f"  prompt: {_short(prompt)}")
            for name, model in (("target", self.target), ("draft", self.draft)):
                mark = {True: " (right)", False: " (wrong)", None: ""}[model.right[number]]
                said.append(f"    {name}{mark}: {_short(model.texts[number])}")
        return said

    def faults(self) -> list[str]:
        """Return the reasons why labels from these models and prompts would be of no use."""
        n, target = len(self.prompts), self.target
        if n < FEW:
            return []
        faults = self._swapped()  # first: a swapped target is often wrong too
        formats = (
            "Is this the prompt format that the target expects (chat messages for a chat model, few-shot examples for "
            "a base model), is the checker the one of this task, and is max_new_tokens long enough?"
        )
        if target.share_right is not None and target.share_right < RARELY:
            faults.append(f"the target is right in {sum(map(bool, target.right))} of {n} answers. {formats}")
        elif sum(target.found) < RARELY * n:
            faults.append(
                f"the checker finds an answer in {sum(target.found)} of {n} responses of the target. {formats}"
            )
        if sum(len(ids) >= self.max_new_tokens for ids in target.tokens) > n / 2:
            faults.append(
                f"more than half of the target's answers are cut off at {self.max_new_tokens} tokens: pass a greater "
                "--max-new-tokens, or prompts that ask for shorter answers"
            )
        return faults

    def _swapped(self) -> list[str]:
        target, draft = self.target, self.draft
        if draft.n_parameters > target.n_parameters:
            return [
                f"the draft has {draft.n_parameters / 1e6:.1f} M parameters, the target "
                f"{target.n_parameters / 1e6:.1f} M: are --target and --draft swapped?"
            ]
        if target.share_right is None:
            return []
        better, worse = changes(target.right, draft.right)
        if better > worse and mcnemar_p(better, worse) < 0.05:
            return [
                f"the draft is right more often than the target ({draft.share_right:.0%} against "
                f"{target.share_right:.0%}): are --target and --draft swapped?"
            ]
        return []


def preflight(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Preflight:
    """Let both models answer some problems.

    Args:
        target, draft: the models, which share the tokenizer.
        tokenizer: the target's.
        problems: the problems; of those without an `answer`, nothing is said about right or wrong.
        max_new_tokens: longest answer, in tokens.
        batch_size: answers at once.

    Raises:
        RefusedPrompt: the tokenizer or the chat template refuses all prompts.
    """
    usable, refused = problems.usable(tokenizer)
    answered = [_answers(model, tokenizer, usable, max_new_tokens, batch_size) for model in (target, draft)]
    return Preflight([prompt_of(row).last for row in usable.rows], *answered, max_new_tokens, refused)


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    max_new_tokens: int,
    batch_size: int,
) -> ModelAnswers:
    prompts = [encode_prompt(tokenizer, prompt_of(row))[1] for row in problems.rows]
    tokens, started = [], time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        answers = greedy(model, tokenizer, batch, [max_new_tokens] * len(batch), n_tokens=len(tokenizer))
        tokens += [ids for ids, _ in answers]
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    right, found = [], []
    for text, row in zip(texts, problems.rows, strict=True):
        was_right, was_found = _checked(problems.checker, text, row)
        right.append(was_right)
        found.append(was_found)
    n_parameters = sum(p.numel() for p in model.parameters())
    return ModelAnswers(texts, tokens, right, found, seconds, n_parameters)


def _checked(checker: Callable, text: str, row: dict) -> tuple[bool | None, bool]:
    """Call the checker once, which may run for long.

    Returns:
        Whether the response is right, None where nothing can be said; and whether the checker found an answer in it.
    """
    is_right, is_found = None, False
    try:
        answer = checker(text, row)
        is_found = answer is not None
        if row.get("answer") is not None or isinstance(answer, bool):
            is_right = answer_is_right(checker, answer, row)
    except TASK_ERRORS:  # the labelling reports the task with its reason
        pass
    return is_right, is_found


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
