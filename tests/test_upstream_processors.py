"""Hard constraints hold under a judge that accepts everything; warpers do not get in its way.

The drafts come from prompt lookup, which proposes what stands in the prompt whatever is forbidden: an assistant obeys
the target's processors, so with one these tests would be empty.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB, always_head, noisy_copy, prompt, repetitive_prompt, tiny_model
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.logits_process import MinPLogitsWarper

from hf_judge import JudgeCandidateVerifier, StrictVerifier, VerdictCode, judged
from hf_judge.upstream.processors import PromptProcessor

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

N_NEW = 16


@pytest.fixture(scope="module")
def target():
    return judged(tiny_model(eos_token_id=None))


IDS = repetitive_prompt(3)
FIRST, SECOND, THIRD, FOURTH = IDS[0, :4].tolist()  # prompt lookup proposes FIRST SECOND THIRD FOURTH over and over


class Ban(LogitsProcessor):
    """A user's own constraint."""

    def __init__(self, *tokens, value=-float("inf"), in_place=False):
        self.tokens, self.value, self.in_place = list(tokens), value, in_place

    def __call__(self, input_ids, scores):
        scores = scores if self.in_place else scores.clone()
        scores[:, self.tokens] = self.value
        return scores


class BanAfter(LogitsProcessor):
    """A constraint that looks at the sequence: the drafted tokens before it included."""

    def __init__(self, before, token):
        self.before, self.token = before, token

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[input_ids[:, -1] == self.before, self.token] = -float("inf")
        return scores


class Grammar(TemperatureLogitsWarper):
    """A user's subclass of a warper that forbids tokens: its type must not hide that."""

    def __call__(self, input_ids, scores):
        return Ban(THIRD)(input_ids, super().__call__(input_ids, scores))


class Halve(LogitsProcessor):
    """Scales what it is given, the dtype's minimum too."""

    def __call__(self, input_ids, scores):
        return scores / 2


def generate(target, ids=IDS, **kwargs):
    judge = JudgeCandidateVerifier(always_head(), 0.5, rescue_stop_tokens=True)
    settings = {"prompt_lookup_num_tokens": 4, "max_new_tokens": N_NEW, "do_sample": False, "judge": judge}
    processors = kwargs.pop("processors", None)
    if processors is not None:
        kwargs["logits_processor"] = LogitsProcessorList(processors)
    return target.generate(ids, return_dict_in_generate=True, output_scores=True, **settings | kwargs)


def rescued_tokens(out) -> list[int]:
    new = out.sequences[0, -out.verdicts.shape[1] :]
    return new[out.verdicts[0] == VerdictCode.RESCUED].tolist()


def test_without_a_constraint_the_token_is_rescued(target):
    """What the tests below forbid does come otherwise."""
    out = generate(target)
    assert {FIRST, SECOND, THIRD, FOURTH} <= set(rescued_tokens(out))
    assert out.judge_stats.refused_by_constraint == 0


FORBIDDING = {
    "bad_words_ids": {"bad_words_ids": [[THIRD]]},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda batch, ids: [token for token in range(VOCAB) if token != THIRD]
    },
    "suppress_tokens": {"suppress_tokens": [THIRD]},
    "sequence_bias": {"sequence_bias": [[[THIRD], -float("inf")]]},
    "ban": {"processors": [Ban(THIRD)]},
    "ban_in_place": {"processors": [Ban(THIRD, in_place=True)]},
    "ban_with_the_minimum": {"processors": [Ban(THIRD, value=torch.finfo(torch.float32).min)]},
    "top_k_ban": {"processors": [TopKLogitsWarper(1), Ban(THIRD)]},
    "ban_top_k": {"processors": [Ban(THIRD), TopKLogitsWarper(1)]},
    "top_p_ban_temperature": {"processors": [TopPLogitsWarper(0.1), Ban(THIRD), TemperatureLogitsWarper(0.5)]},
    "ban_in_place_top_k": {"processors": [Ban(THIRD, in_place=True), TopKLogitsWarper(2)]},
    "subclass_of_a_warper": {"processors": [Grammar(0.7)]},
    "warper_subclass_of_a_warper": {"processors": [MinPLogitsWarper(0.9), Grammar(0.7)]},
    "ban_halve": {"processors": [Ban(THIRD), Halve()]},
    "suppress_halve": {"suppress_tokens": [THIRD], "processors": [Halve()]},
    "bad_words_halve": {"bad_words_ids": [[THIRD]], "processors": [Halve()]},
    "exponential_decay": {
        "exponential_decay_length_penalty": (100, 1.1),
        "eos_token_id": 2,
        "bad_words_ids": [[THIRD]],
    },
}


class TestForbidden:
    @pytest.mark.parametrize("remove_invalid_values", [False, True])
    @pytest.mark.parametrize("name", FORBIDDING)
    def test_never_comes(self, target, name, remove_invalid_values):
        out = generate(target, remove_invalid_values=remove_invalid_values, **FORBIDDING[name])
        new = out.sequences[0, IDS.shape[1] :].tolist()
        assert THIRD not in new
        assert out.judge_stats.refused_by_constraint > 0
        assert {FIRST, SECOND} <= set(rescued_tokens(out))  # and the judge goes on rescuing what is allowed
        assert len(new) == N_NEW

    @pytest.mark.parametrize("remove_invalid_values", [False, True])
    @pytest.mark.parametrize(
        "constraint",
        [{"bad_words_ids": [[SECOND, THIRD]]}, {"processors": [BanAfter(SECOND, THIRD)]}, {"no_repeat_ngram_size": 2}],
    )
    def test_pairs_never_come(self, target, constraint, remove_invalid_values):
        """A constraint on what follows a drafted token sees that token."""
        out = generate(target, remove_invalid_values=remove_invalid_values, **constraint)
        new = out.sequences[0].tolist()[IDS.shape[1] - 1 :]
        assert (SECOND, THIRD) not in set(zip(new, new[1:], strict=False))
        assert out.judge_stats.refused_by_constraint > 0

    @pytest.mark.parametrize(
        "constraint",
        [{"min_new_tokens": N_NEW}, {"min_length": IDS.shape[1] + N_NEW}],
        ids=lambda kwargs: next(iter(kwargs)),
    )
    def test_shortest_answer(self, target, constraint, monkeypatch):
        """An end token that comes too early; every source of upstream's avoids it, so this one is ours."""

        def propose(source, input_ids, *, budget, **kwargs):
            return torch.tensor([[FIRST, THIRD, SECOND][:budget]], dtype=torch.long), None, None

        monkeypatch.setattr("hf_judge.upstream.candidates.CandidateSource.propose", propose)
        ended = generate(target, eos_token_id=THIRD)
        assert ended.sequences[0, IDS.shape[1] :].tolist() == [FIRST, THIRD]
        out = generate(target, eos_token_id=THIRD, **constraint)
        assert THIRD not in out.sequences[0, IDS.shape[1] :]
        assert len(out.sequences[0]) == IDS.shape[1] + N_NEW
        assert out.judge_stats.refused_by_constraint > 3
        assert FIRST in rescued_tokens(out)

    def test_begin_suppress_tokens(self, target):
        out = generate(target, begin_suppress_tokens=[FIRST])
        assert out.sequences[0, IDS.shape[1]] != FIRST
        assert out.judge_stats.refused_by_constraint == 1

    def test_forced_eos_token(self, target):
        out = generate(target, forced_eos_token_id=9, eos_token_id=9)
        assert out.sequences[0, -1] == 9
        assert len(rescued_tokens(out)) > 0

    @pytest.mark.parametrize("name", ["bad_words_ids", "ban", "top_k_ban", "ban_top_k", "ban_halve"])
    @pytest.mark.parametrize("warper", [{}, {"top_k": 3}, {"top_p": 0.3, "top_k": 0}, {"top_h": 0.4}, {"min_p": 0.5}])
    @pytest.mark.parametrize("remove_invalid_values", [False, True])
    def test_never_comes_when_sampling(self, target, name, warper, remove_invalid_values):
        for seed in range(2):
            torch.manual_seed(seed)
            out = generate(
                target, do_sample=True, remove_invalid_values=remove_invalid_values, **FORBIDDING[name], **warper
            )
            assert THIRD not in out.sequences[0, IDS.shape[1] :]
            assert out.judge_stats.refused_by_constraint > 0
            assert {FIRST, SECOND} <= set(rescued_tokens(out))


class TestWarpers:
    """To go beyond the target's nucleus is what a judge is for."""

    @pytest.mark.parametrize("remove_invalid_values", [False, True])
    @pytest.mark.parametrize(
        "warper",
        [
            {"top_k": 1},
            {"top_p": 0.01},
            {"min_p": 0.999},
            {"typical_p": 0.01},
            {"epsilon_cutoff": 0.6},
            {"eta_cutoff": 0.9},
            {"top_h": 0.01},
            {"temperature": 0.01},
            {"renormalize_logits": True, "top_k": 1},
            {"processors": [TopKLogitsWarper(1)]},
            {"processors": [TopPLogitsWarper(0.01), MinPLogitsWarper(0.9)], "top_k": 2},
        ],
        ids=lambda warper: "-".join(warper),
    )
    def test_do_not_block_a_rescue(self, target, warper, remove_invalid_values):
        torch.manual_seed(0)
        out = generate(target, do_sample=True, remove_invalid_values=remove_invalid_values, **warper)
        assert {FIRST, SECOND, THIRD, FOURTH} <= set(rescued_tokens(out))
        assert out.judge_stats.refused_by_constraint == 0
        new = out.sequences[0, IDS.shape[1] :]
        scores = torch.stack([row[0, token] for row, token in zip(out.scores, new, strict=True)])
        if "temperature" not in warper:
            # the warper had indeed taken the rescued tokens away
            assert (scores[out.verdicts[0] == VerdictCode.RESCUED] <= torch.finfo(torch.float32).min).any()

    def test_watermark_does_not_block_a_rescue(self, target):
        from transformers import WatermarkingConfig

        out = generate(target, watermarking_config=WatermarkingConfig(bias=8.0, context_width=1))
        assert {FIRST, SECOND, THIRD, FOURTH} <= set(rescued_tokens(out))


class TestPromptProcessor:
    def test_scores_are_those_of_the_whole_list(self):
        """Row by row what upstream's plain loop would compute, and the raw logits stay as they are."""
        processors = LogitsProcessorList([Ban(3, in_place=True), TopKLogitsWarper(5), BanAfter(7, 8), Halve()])
        sequence = torch.tensor([[4, 5, 6, 7, 8, 7]])
        logits = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0))
        before = logits.clone()
        scores, forbidden = PromptProcessor(processors)(sequence[:, :3], logits, sequence[:, 3:])
        assert torch.equal(logits, before)
        for row in range(4):
            assert torch.equal(scores[:, row], processors(sequence[:, : 3 + row], logits[:, row].clone()))
        assert forbidden.tolist() == [[False, True, False]]

    def test_nan_is_forbidden(self):
        """A processor that answers NaN has not allowed the token."""
        processors = LogitsProcessorList([Ban(3, value=float("nan"))])
        _, forbidden = PromptProcessor(processors)(torch.tensor([[1]]), torch.zeros(1, 3, 12), torch.tensor([[2, 3]]))
        assert forbidden.tolist() == [[False, True]]

    def test_no_processors(self):
        logits = torch.randn(1, 3, 12)
        scores, forbidden = PromptProcessor(LogitsProcessorList())(torch.tensor([[1]]), logits, torch.tensor([[2, 3]]))
        assert torch.equal(scores, logits)
        assert forbidden.tolist() == [[False, False]]


class _Rank(LogitsProcessor):
    """Compares the prompts of a batch."""

    def __call__(self, input_ids, scores):
        return scores - scores.mean(0)


class _Counter(LogitsProcessor):
    """Keeps a state."""

    def __init__(self):
        self.n = 0

    def __call__(self, input_ids, scores):
        self.n += 1
        scores = scores.clone()
        scores[:, self.n % 7 :: 7] = -torch.inf
        return scores


class TestOwnProcessors:
    @pytest.mark.parametrize(
        ("processor", "n_prompts", "message"),
        [
            (_Rank, 2, "makes the scores of one prompt depend on other prompts"),
            (_Counter, 1, "gives other scores when it is called again"),
            (_Counter, 3, "gives other scores when it is called again"),
        ],
    )
    def test_what_cannot_follow_drafts_is_refused(self, processor, n_prompts, message):
        stock = tiny_model()
        target, draft = judged(stock), noisy_copy(stock)
        ids = torch.cat([prompt(i) for i in range(n_prompts)])
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "judge": StrictVerifier()}
        with pytest.raises(ValueError, match=message):
            target.generate(ids, assistant_model=draft, logits_processor=[processor()], **options)

    def test_a_criterion_with_one_answer_for_all(self):
        stock = tiny_model()
        target, draft = judged(stock), noisy_copy(stock)

        class AtLength(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                return torch.tensor([input_ids.shape[1] >= 17])

        ids = torch.cat([prompt(i) for i in range(3)])
        options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        options["stopping_criteria"] = [AtLength()]
        plain = target.generate(ids, judge=False, **options)
        got = target.generate(ids, judge=StrictVerifier(), assistant_model=draft, **options)
        assert plain.shape[1] == 17
        assert torch.equal(got, plain)

    def test_a_count_that_comes_later_is_seen(self):
        class Later(_Counter):
            def __call__(self, input_ids, scores):
                self.n += 1
                return scores if self.n < 8 else scores.roll(1, dims=-1)

        stock = tiny_model()
        with pytest.raises(ValueError, match="gives other scores when it is called again"):
            judged(stock).generate(
                prompt(0), assistant_model=noisy_copy(stock), logits_processor=[Later()], judge=StrictVerifier(),
                max_new_tokens=4, do_sample=False, pad_token_id=0,
            )  # fmt: skip

    @pytest.mark.parametrize("counts", [False, True])
    def test_criteria_of_a_batch_that_do_not_look_at_each_prompt_alone(self, counts):
        class Together(StoppingCriteria):
            n = 0

            def __call__(self, input_ids, scores, **kwargs):
                self.n += 1
                first_ends = input_ids[:1, 15:].eq(answer).any(dim=1)
                return torch.tensor([self.n >= 5]) if counts else first_ends.expand(len(input_ids))

        stock = tiny_model()
        target, draft = judged(stock), noisy_copy(stock)
        ids = torch.cat([prompt(i) for i in range(3)])
        options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        plain = target.generate(ids, judge=False, **options)
        answer = next(t for t in plain[0, 15:].tolist() if (plain[1:, 15:] == t).sum() == 0)
        options |= {"judge": StrictVerifier(), "assistant_model": draft}
        with pytest.raises(ValueError, match="Together.*ends an answer elsewhere when it sees all prompts in step"):
            target.generate(ids, stopping_criteria=[Together()], **options)
