"""Answers of a target, alone or judged, to many prompts; and whether they are right. Calibration by task needs both.

Knows nothing about how a head was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.labelling.answers import is_right
from hf_judge.labelling.greedy import ANSWER_ALONE, greedy
from hf_judge.labelling.tokens import encode_prompt
from hf_judge.modeling.classes import judged
from hf_judge.upstream.devices import input_device
from hf_judge.upstream.generation import tokenizer_arguments
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
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[list[str], JudgeStats]:
    """Greedy answers under an acceptance rule.

    Args:
        model: the target; need not be a Judge class.
        draft: proposes; has the target's vocabulary.
        prompts: texts or chat messages.
        verifier: the rule.
        num_assistant_tokens: drafted tokens per round.
        desc: of the progress bar.
        draft_tokenizer: of the draft; None: the target's.

    Returns:
        The answers, and what the rule did over all of them.
    """
    model, before, texts = judged(model), verifier.stats, []
    verifier.stats = JudgeStats()
    tokenizers = tokenizer_arguments(model, draft, tokenizer, draft_tokenizer or tokenizer)
    for prompt in tqdm(prompts, desc=desc, unit="answer"):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)[1]], device=input_device(model))
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=draft,
            **tokenizers,
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


def right_answers(texts: Sequence[str], tasks: Sequence[dict], checker: Callable) -> list[bool]:
    """Which answers are right, by [`hf_judge.labelling.answers.is_right`].

    Args:
        texts: one answer per task.
        tasks: with the right answer under `answer`, unless the checker itself says True or False.
        checker: `(response, task) -> answer`.

    Raises:
        ValueError: a task without an `answer` that the checker can read.
    """
    right = []
    for number, (text, task) in enumerate(zip(texts, tasks, strict=True), 1):
        try:
            right.append(is_right(checker, text, task))
        except ValueError as error:
            raise ValueError(f"task {number}: {error}") from None
    return right
