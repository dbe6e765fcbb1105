"""Answers that are decoded once for all thresholds at which they stay the same."""

from __future__ import annotations

import measured_pair
import pytest
import torch
from tiny_models import noisy_copy, prompt, random_head, tiny_model

from hf_judge import JudgeCandidateVerifier, judged
from hf_judge.evaluation.evaluate import Decoding, JudgedAnswers, right_answers
from hf_judge.rules.by_name import Setting
from hf_judge.training.threshold_range import ThresholdRangeVerifier, holds_at

THRESHOLDS = [0.02 * i for i in range(51)]


def generate(judge, ids, mask, seed):
    target = tiny_model(seed=seed)
    draft = noisy_copy(target)
    options = {"max_new_tokens": 18, "do_sample": False, "pad_token_id": 0, "num_assistant_tokens": 5}
    return judged(target).generate(ids, attention_mask=mask, assistant_model=draft, judge=judge, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("batch", "window"), [(1, 0), (3, 0), (1, 2), (3, 9)])
def test_the_range_is_exactly_that_of_the_same_decisions(seed, batch, window):
    """Inside the range the answer is the same, whatever the head; just outside it a decision differs."""
    head = random_head(seed=seed, scale=2.0, rescue_window=window)
    ids = torch.cat([prompt(seed + i) for i in range(batch)])
    mask = torch.ones_like(ids)
    mask[-1, :4] = 0  # prompts of different lengths end at different times
    answers = {t: generate(JudgeCandidateVerifier(head, t), ids, mask, seed) for t in THRESHOLDS}
    n_shared = 0
    for threshold in THRESHOLDS[::5]:
        verifier = ThresholdRangeVerifier(head, threshold, batch)
        assert torch.equal(generate(verifier, ids, mask, seed), answers[threshold])
        for place in range(batch):
            assert holds_at(threshold, *verifier.range_of(place))
            for other in THRESHOLDS:
                if holds_at(other, *verifier.range_of(place)):
                    n_shared += other != threshold
                    n = min(answers[other].shape[1], answers[threshold].shape[1])
                    assert torch.equal(answers[other][place, :n], answers[threshold][place, :n])
    assert n_shared > 0


@pytest.mark.parametrize("batch_size", [1, 2])
def test_shared_answers_are_those_of_each_threshold(batch_size):
    pair, task = measured_pair.pair(), measured_pair.task(4)
    decoding = Decoding(4, 12, batch_size=batch_size)
    shared = JudgedAnswers(pair, task, decoding)
    for threshold in THRESHOLDS[::3]:
        alone = right_answers(pair, task, Setting("judge", threshold), decoding, desc="alone")
        assert shared(threshold) == alone
    assert shared.n_decoded < 4 * len(THRESHOLDS[::3])


def test_sampled_answers_are_not_shared():
    with pytest.raises(ValueError, match="temperature must be 0"):
        JudgedAnswers(measured_pair.pair(), measured_pair.task(1), Decoding(temperature=1.0))
