"""Label tokens by swaps between two models and a way to compare answers (AutoJudge, arXiv 2504.20039, section 3).

Where the draft would have written another token than the target, write it, let the target finish, and compare the final
answers. A swap that does not change the answer is acceptable and stays; one that does is a mistake and is undone; go on
to the right.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.checking.checkers import Checker
from hf_judge.head.compatibility import check_pair, n_shared_tokens
from hf_judge.labelling.greedy import greedy, greedy_choices, stop_tokens_of
from hf_judge.labelling.jobs import (
    NEAR_TIE,
    TASK_ERRORS,
    MiningReport,
    decode_exactly,
    make_row,
    name_of,
    refusal,
    run_job,
)
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.labelling.tokens import UnlabelledRow, decoded_offsets


def mine_swaps(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[dict],
    checker: Checker,
    output: str | os.PathLike,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    label_matched: bool = True,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    names: Sequence[str] | None = None,
    strict: bool = False,
) -> MiningReport:
    """Label swapped tokens by whether they change the target's final answer.

    Args:
        target, draft: the models, whose greedy answers are used; they share the tokenizer.
        tokenizer: the target's tokenizer.
        tasks: dicts with `prompt` (text or chat messages), optionally `task_id`, and whatever the checker reads.
        checker: `(response, task) -> answer`; answers are compared with the one of the target's own response.
        output: JSONL file of [`LabelledResponse`]; finished prompts are kept in `<output>.journal` for a rerun.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts at once; examples do not depend on it, except those marked `near_tie`.
        label_matched: also label the tokens of the kept response that both models chose as acceptable: a head that has
            never seen them scores them at random.
        draft_tokenizer: the draft's tokenizer, which must agree with the target's; None: it is the target's.
        names: names of the tasks in the report, as "prompts.jsonl, line 3"; None: "task 3".
        strict: stop at a task that the models or the checker refuse, instead of listing it in the report.

    Returns:
        Counts over all tasks, and the refused ones.

    Raises:
        ValueError: the tokenizers disagree.
    """
    if draft_tokenizer is not None:
        check_pair(tokenizer, draft_tokenizer)
    settings = {
        "source": "swap",
        "target": target.config.name_or_path,
        "draft": draft.config.name_or_path,
        "checker": name_of(checker),
        "max_new_tokens": max_new_tokens,
        "label_matched": label_matched,
    }
    swapping = _Swapping(target, draft, tokenizer, checker, max_new_tokens, label_matched)

    def work(todo: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        return swapping.work(todo, batch_size)

    return run_job(work, list(tasks), output, settings, target, names=names, strict=strict, draft=draft)


@dataclass(frozen=True)
class _Swapping:
    """Tries the swaps of several prompts at once; the fields are arguments of [`mine_swaps`]."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    checker: Checker
    max_new_tokens: int
    label_matched: bool

    def work(self, todo: list[tuple[str, dict]], batch_size: int) -> Iterator[tuple[str, dict]]:
        """Do tasks, `batch_size` at a time, and yield (key, record), as [`run_job`] expects."""
        n_tokens = n_shared_tokens(self.tokenizer, self.target, self.draft)
        waiting, active = todo[::-1], []
        while waiting or active:
            while waiting and len(active) < batch_size:
                key, task = waiting.pop()
                try:
                    active.append(_Prompt(key, task, self.tokenizer, self.checker, self.label_matched))
                except TASK_ERRORS as error:
                    yield key, refusal(error)
            if active:
                self._try_swaps(active, n_tokens)
            yield from ((prompt.key, prompt.record()) for prompt in active if prompt.done)
            active = [prompt for prompt in active if not prompt.done]

    def _try_swaps(self, active: list[_Prompt], n_tokens: int) -> None:
        """Let the target answer every prompt after its latest swap, and choose the next swap of each."""
        prefixes = [prompt.prompt_ids + prompt.prefix for prompt in active]
        limits = [self.max_new_tokens - len(prompt.prefix) for prompt in active]
        answers = greedy(self.target, self.tokenizer, prefixes, limits)
        changed = [prompt for prompt, (ids, gap) in zip(active, answers, strict=True) if prompt.receive(ids, gap)]
        texts = [(prompt.prompt_ids, prompt.response) for prompt in changed]
        choices = greedy_choices(self.draft, texts, n_tokens=n_tokens)
        for prompt, (tokens, gaps) in zip(changed, choices, strict=True):
            prompt.look_for_swaps(tokens, gaps, stop_tokens=stop_tokens_of(self.target))
        for prompt in active:
            prompt.next_swap(self.max_new_tokens)


class _Prompt:
    """Follows one prompt through its swaps."""

    def __init__(self, key: str, task: dict, tokenizer, checker: Checker, label_matched: bool):
        self.key, self.task = key, task
        self.prompt_ids = encode_prompt(tokenizer, prompt_of(task))[1]
        self.prefix = []  # ids of the response that the target is to continue
        self.response = None  # ids of the response with all kept swaps
        self.done = False
        self._tokenizer, self._checker, self._label_matched = tokenizer, checker, label_matched
        self._answer = None
        self._swaps = []  # (position, draft's token) still to be tried in `response`, the leftmost last
        self._left = 0  # positions before this one are settled
        self._kept = []  # positions whose token stays
        self._undone = []  # whole prefixes that end in the swapped token, with their ties
        self._gap = float("inf")
        self._counts = Counter()
        self._refusal = None  # the record of a task that the checker could not do

    def receive(self, ids: list[int], gap: float) -> bool:
        """Take the target's continuation, and return whether the response is now another one."""
        self._gap = min(self._gap, gap)
        response = self.prefix + ids
        try:
            answer = self._checker(self._tokenizer.decode(response, skip_special_tokens=True), self.task)
        except TASK_ERRORS as error:
            self.done, self._refusal = True, refusal(error)
            return False
        if self.response is None:
            self.response, self._answer = response, answer
            if answer is None:
                self.done = True
                self._counts["skipped: no answer in the target's own response"] += 1
            return not self.done
        if answer == self._answer:
            self._kept.append(len(self.prefix) - 1)
            self.response = response
            return True
        self._undone.append((self.prefix, self._gap <= NEAR_TIE))  # later choices do not change it
        return False

    def look_for_swaps(self, tokens: list[int], gaps: list[float], *, stop_tokens: set[int]) -> None:
        """Take the draft's choice at every position of the response."""
        self._gap = min([self._gap, *gaps[self._left :]])
        self._swaps = [
            (i, token)
            for i, token in enumerate(tokens)
            # a stop token is never rescued, so nothing is learned about it
            if i >= self._left and token != self.response[i] and token not in stop_tokens
        ][::-1]

    def next_swap(self, max_new_tokens: int) -> None:
        """Choose the leftmost swap that is left, or be done."""
        if self.done:
            return
        if self._swaps and self._swaps[-1][0] + 1 < max_new_tokens:
            position, token = self._swaps.pop()
            self.prefix, self._left = [*self.response[:position], token], position + 1
        else:
            self.done = True

    def record(self) -> dict:
        """Return the examples and counts of a finished prompt."""
        if self._refusal is not None:
            return self._refusal
        rows, tie = [], self._gap <= NEAR_TIE
        if self.response is not None and not self._counts:
            self._counts.update({"swaps kept": len(self._kept), "swaps undone": len(self._undone)})
            rows.append(self._labelled(self.response, self._kept, mistaken=False, tie=tie))
            rows += [self._labelled(ids, [len(ids) - 1], mistaken=True, tie=own) for ids, own in self._undone]
        if tie:
            self._counts["prompts with a near-tie"] += 1
        return {"rows": [row.to_dict() for row in rows if row is not None], "counts": self._counts}

    def _labelled(self, ids: list[int], positions: list[int], *, mistaken: bool, tie: bool) -> LabelledResponse | None:
        """Make an example of a response whose swaps at `positions` were kept or are mistaken."""
        while ids and ids[-1] in self._tokenizer.all_special_ids:
            ids = ids[:-1]
        text = decode_exactly(self._tokenizer, ids)
        try:
            offsets = decoded_offsets(self._tokenizer, ids, text)
        except UnlabelledRow:
            self._counts["skipped: tokens without text of their own"] += 1
            return None
        spans = tuple(offsets[i] for i in positions if i < len(offsets) and _stands_alone(offsets, i))
        if len(spans) < len(positions):  # bytes that only together make a character
            self._counts["skipped: tokens without text of their own"] += len(positions) - len(spans)
        if not spans and (mistaken or not self._label_matched):
            return None
        scope = None if self._label_matched and not mistaken else spans
        return make_row(self.task, text, ids, "swap", mistakes=spans if mistaken else (), scope=scope, near_tie=tie)


def _stands_alone(offsets: list[tuple[int, int]], position: int) -> bool:
    """Return whether a token has characters and shares none with other tokens (tokens of single bytes do)."""
    start, end = offsets[position]
    return start < end and not any(a < end and b > start for a, b in [*offsets[:position], *offsets[position + 1 :]])
