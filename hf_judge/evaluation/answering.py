"""Answers of a target, alone or judged, to many prompts; and whether they are right. Calibration by task needs both.

Knows nothing about how a head was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.labelling.checkers import Checker
from hf_judge.labelling.greedy import ANSWER_ALONE, greedy
from hf_judge.labelling.tokens import encode_prompt
from hf_judge.modeling.mixin import judged
from hf_judge.upstream.devices import input_device
from hf_judge.verify.rule import CandidateVerifier
from hf_judge.verify.stats import JudgeStats


def plain_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    *,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> list[str]:
    """The model's own greedy answers.

    Args:
        prompts: texts or chat messages.
        batch_size: prompts at once.
    """
    texts = []
    with tqdm(total=len(prompts), desc="Target's answers", unit="answer") as bar:
        for start in range(0, len(prompts), batch_size):
            batch = [encode_prompt(tokenizer, prompt)[1] for prompt in prompts[start : start + batch_size]]
            answers = greedy(model, tokenizer, batch, [max_new_tokens] * len(batch))
            texts += [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in answers]
            bar.update(len(batch))
    return texts


@torch.no_grad()
def judged_answers(
    model: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    verifier: CandidateVerifier,
    *,
    num_assistant_tokens: int = 32,
    max_new_tokens: int = 512,
    desc: str = "Judged answers",
) -> tuple[list[str], JudgeStats]:
    """Greedy answers under an acceptance rule.

    Args:
        model: the target; need not be a Judge class.
        draft: proposes.
        prompts: texts or chat messages.
        verifier: the rule.
        num_assistant_tokens: drafted tokens per round.
        desc: of the progress bar.

    Returns:
        The answers, and what the rule did over all of them.
    """
    model, before, texts = judged(model), verifier.stats, []
    verifier.stats = JudgeStats()
    for prompt in tqdm(prompts, desc=desc, unit="answer"):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)[1]], device=input_device(model))
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=draft,
            judge=verifier,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **ANSWER_ALONE,
            num_assistant_tokens=num_assistant_tokens,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        texts.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    stats, verifier.stats = verifier.stats, before + verifier.stats
    return texts, stats


def right_answers(texts: Sequence[str], tasks: Sequence[dict], checker: Checker) -> list[bool]:
    """Which answers are right.

    Args:
        texts: one answer per task.
        tasks: with the right answer under `answer`, unless the checker itself says True or False.
        checker: `(response, task) -> answer`.

    Raises:
        ValueError: a task without `answer`.
    """
    return [_is_right(checker(text, task), task, n) for n, (text, task) in enumerate(zip(texts, tasks, strict=True), 1)]


def _is_right(answer: object, task: dict, number: int) -> bool:
    if isinstance(answer, bool) or answer is None:
        return bool(answer)
    if "answer" not in task:
        raise ValueError(f"task {number} has no 'answer' to compare with; its keys are {sorted(task)}")
    if isinstance(answer, Decimal):
        try:
            return answer == Decimal(str(task["answer"]).replace(",", ""))
        except InvalidOperation:
            raise ValueError(f"task {number}: 'answer' is not a number: {task['answer']!r:.60}") from None
    return str(answer) == str(task["answer"])
