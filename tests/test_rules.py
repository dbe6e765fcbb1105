"""Other people's rules on hand-made tensors, as distributions, and through generate()."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_judge import JudgeConfig, JudgeHead, StrictVerifier, VerdictCode, judged
from hf_judge.head.distributions import entropy, kl_divergence
from hf_judge.rules import (
    BlockVerifier,
    CactusVerifier,
    CascadeVerifier,
    EnsembleVerifier,
    FlyVerifier,
    FuzzyVerifier,
    KLVerifier,
    MarsVerifier,
    MentoredVerifier,
    RandomVerifier,
    RelaxedVerifier,
    ThresholdsVerifier,
    TokenCascadeVerifier,
    TopKVerifier,
    TypicalVerifier,
    VllmFlyVerifier,
    ensemble_tokens,
    fly_accepts,
    kl_accepts,
    random_accepts,
    relaxed_accepts,
    thresholds_accept,
    top_k_accepts,
    typical_accepts,
)
from hf_judge.rules.by_name import Setting, make_verifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import Candidates, TargetOutputs

M, R, C, B, P = (int(code) for code in VerdictCode)
VOCAB = 48


def logs(*rows: list[float]) -> torch.Tensor:
    """(1, n, V) scores whose softmax is the given probabilities."""
    return torch.tensor([rows], dtype=torch.float32).log()


def head(hidden_size: int = 32, *, bias: float = 0.0, scale: float = 1.0) -> JudgeHead:
    made = JudgeHead(JudgeConfig(hidden_size=hidden_size))
    with torch.no_grad():
        made.weight.copy_(torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(5)) * scale)
        made.bias.fill_(bias)
    return made.requires_grad_(False)


def autojudge(made: JudgeHead, threshold: float) -> JudgeCandidateVerifier:
    return make_verifier(Setting("autojudge", threshold), {"autojudge": made})


def tiny(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=3, pad_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    model, generator = LlamaForCausalLM(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * parameter.shape[-1] ** -0.5)
        model.model.embed_tokens.weight.mul_(4)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def pair():
    """A target, and a draft that is the target plus noise."""
    target = tiny(0)
    draft, generator = copy.deepcopy(target), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.15
    return judged(target), draft


def prompt(seed: int) -> torch.LongTensor:
    return torch.randint(4, VOCAB, (1, 10), generator=torch.Generator().manual_seed(seed))


def generate(pair, seed: int = 0, **kwargs):
    target, draft = pair
    settings = {"num_assistant_tokens": 6, "num_assistant_tokens_schedule": "constant"}
    if kwargs.get("judge") is None:  # upstream takes them from the draft's config alone
        draft = copy.deepcopy(draft)
        draft.generation_config.update(**settings, assistant_confidence_threshold=0.0)
        settings = {}
    else:
        settings["assistant_confidence_threshold"] = 0.0
    options = {"max_new_tokens": 40, "do_sample": False, "assistant_model": draft} | settings | kwargs
    return target.generate(prompt(seed), return_dict_in_generate=True, **options)


class TestFormulas:
    SCORES = logs([0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01])

    def ids(self, *ids: int) -> torch.Tensor:
        return torch.tensor([ids])

    def test_top_k(self):
        assert top_k_accepts(self.SCORES, self.ids(1, 0), 2).tolist() == [[True, True]]
        assert top_k_accepts(self.SCORES, self.ids(2, 0), 2).tolist() == [[False, True]]
        assert top_k_accepts(self.SCORES, self.ids(1, 1), 1).tolist() == [[False, False]]

    def test_relaxed_needs_both_rank_and_probability(self):
        assert relaxed_accepts(self.SCORES, self.ids(1, 1), 3, 0.25).tolist() == [[True, False]]
        assert relaxed_accepts(self.SCORES, self.ids(2, 1), 2, 0.4).tolist() == [[False, False]]  # rank 3 of 2
        assert relaxed_accepts(self.SCORES, self.ids(2, 1), 3, 0.3).tolist() == [[False, False]]  # 0.15 < 0.5 - 0.3

    def test_typical_by_hand(self):
        h = -sum(p * math.log(p) for p in (0.5, 0.3, 0.15, 0.05))
        threshold = 0.3 * math.exp(-h)  # 0.096, the smaller of the two at epsilon 0.2
        assert 0.05 < threshold < 0.15
        scores = self.SCORES[:, :1].expand(1, 4, 4)
        assert typical_accepts(scores, self.ids(0, 1, 2, 3), 0.2, 0.3).tolist() == [[True, True, True, False]]
        assert typical_accepts(scores, self.ids(0, 1, 2, 3), 0.04, 0.3).tolist() == [[True] * 4]  # epsilon is smaller

    def test_typical_always_takes_the_best_token(self):
        scores = torch.randn(1, 500, 30, generator=torch.Generator().manual_seed(0)) * 4
        assert typical_accepts(scores, scores.argmax(-1), 0.99, 0.99).all()

    def test_entropy_is_in_nats_and_takes_minus_infinity(self):
        uniform = logs([0.25] * 4, [0.5, 0.5, 0.0, 0.0])
        torch.testing.assert_close(entropy(uniform), torch.tensor([[math.log(4), math.log(2)]]))

    def test_kl_has_the_target_first(self):
        target, draft = [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]
        expected = sum(p * math.log(p / q) for p, q in zip(target, draft, strict=True))
        swapped = sum(q * math.log(q / p) for p, q in zip(target, draft, strict=True))
        assert abs(expected - swapped) > 0.1
        torch.testing.assert_close(kl_divergence(logs(target), logs(draft)), torch.tensor([[expected]]))
        between = (expected + swapped) / 2
        assert kl_accepts(logs(target), logs(draft), between, 0.9).item() is (expected < between)

    def test_kl_is_infinite_where_the_draft_rules_out_what_the_target_says(self):
        assert kl_divergence(logs([0.5, 0.5, 0.0]), logs([1.0, 0.0, 0.0])).item() == math.inf
        assert kl_divergence(logs([1.0, 0.0, 0.0]), logs([0.5, 0.5, 0.0])).item() == pytest.approx(math.log(2))

    def test_kl_is_strict_where_the_target_is_sure(self):
        sure, close = logs([0.95, 0.03, 0.02]), logs([0.94, 0.04, 0.02])
        assert not kl_accepts(sure, close, 1.0, 0.9).item()
        assert kl_accepts(sure, close, 1.0, 0.96).item()

    def test_fly_waits_for_the_window(self):
        unsure = logs([0.3, 0.3, 0.4]).expand(1, 6, 3)
        full = torch.tensor([6])

        def accepted(matched, scores=unsure, lengths=full, window=3):
            return fly_accepts(torch.tensor([matched]).bool(), scores, lengths, 0.5, window)[0].int().tolist()

        assert accepted([1, 0, 1, 1, 1, 1])[1] == 1
        assert accepted([1, 0, 1, 0, 1, 1])[1] == 0  # two mismatches within a window: the first ...
        assert accepted([1, 0, 1, 0, 1, 1])[3] == 1  # ... though the second has its two matches
        assert accepted([1, 1, 1, 1, 0, 1])[4] == 0  # only one token follows
        assert accepted([1, 0, 1, 1, 1, 1], lengths=torch.tensor([3]))[1] == 0  # padding is no match
        assert accepted([0, 0, 0, 0, 0, 0], window=1) == [1] * 6  # a window of one waits for nothing
        sure = logs([0.98, 0.01, 0.01]).expand(1, 6, 3)
        assert accepted([1, 0, 1, 1, 1, 1], scores=sure)[1] == 0

    def test_fly_normalises_the_entropy(self):
        """H / log V: four equal tokens of 4 are total uncertainty, of 1000 they are not."""
        small = logs([0.25] * 4).expand(1, 2, 4)
        large = logs([0.25] * 4 + [0.0] * 996).expand(1, 2, 1000)
        matched, lengths = torch.tensor([[False, True]]), torch.tensor([2])
        assert fly_accepts(matched, small, lengths, 0.5, 2)[0, 0]
        assert not fly_accepts(matched, large, lengths, 0.5, 2)[0, 0]

    def test_ensemble_mixes_probabilities(self):
        target, draft = logs([0.6, 0.4, 0.0]), logs([0.0, 0.5, 0.5])
        assert ensemble_tokens(target, draft, 1.0).item() == 0
        assert ensemble_tokens(target, draft, 0.8).item() == 0  # 0.48, 0.42
        assert ensemble_tokens(target, draft, 0.5).item() == 1  # 0.30, 0.45
        forbidden = logs([0.0, 1.0, 0.0])
        assert ensemble_tokens(forbidden, logs([0.9, 0.1, 0.0]), 0.2).item() == 1

    def test_thresholds(self):
        scores = self.SCORES[:, :1].expand(1, 4, 4)
        ids = self.ids(0, 1, 2, 3)
        assert thresholds_accept(scores, ids, None, 0.3, 1.0).tolist() == [[True, True, False, False]]
        draws = torch.full((1, 4), 0.4)
        assert thresholds_accept(scores, ids, draws, math.inf, 1.0).tolist() == [[True, False, False, False]]
        assert thresholds_accept(scores, ids, draws, math.inf, 0.5).tolist() == [[True, True, False, False]]

    def test_random_rate_and_repetition(self):
        ids = torch.arange(4000).view(4, 1000) % 97
        first = torch.tensor([0, 1000, 2000, 3000])
        for rate in (0.0, 0.2, 0.7, 1.0):
            share = random_accepts(ids, first, rate, 3).float().mean().item()
            assert abs(share - rate) < 6 * math.sqrt(rate * (1 - rate) / 4000) + 1e-9  # 6 sigma: false alarm 2e-9
        assert random_accepts(ids, first, 0.5, 3).equal(random_accepts(ids, first, 0.5, 3))
        assert not random_accepts(ids, first, 0.5, 3).equal(random_accepts(ids, first, 0.5, 4))
        # where a round begins makes no difference
        later = random_accepts(ids[:, 500:], first + 500, 0.5, 3)
        assert later.equal(random_accepts(ids, first, 0.5, 3)[:, 500:])


class TestVerdicts:
    """Rows of three tokens; the target's best is token 0 throughout."""

    SCORES = logs([0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1])
    ROWS = TargetOutputs(SCORES, SCORES)

    def verdict(self, rule, ids, rows=ROWS, **more):
        verdict = rule.verify(Candidates(torch.tensor([ids]), **more), rows)
        return verdict.n_accepted.item(), verdict.next_token.item(), verdict.codes[0].tolist()

    def test_rescue_and_correct(self):
        assert self.verdict(TopKVerifier(2), [1, 2]) == (1, 0, [R, C, P])
        assert self.verdict(TopKVerifier(1), [1, 2]) == (0, 0, [C, P, P])
        assert self.verdict(RelaxedVerifier(0.2), [1, 0]) == (2, 0, [R, M, B])
        assert self.verdict(TypicalVerifier(0.3, 1.0), [1, 2]) == (1, 0, [R, C, P])
        assert self.verdict(ThresholdsVerifier(0.3), [0, 1]) == (2, 0, [M, R, B])
        assert self.verdict(RandomVerifier(1.0), [2, 2]) == (2, 0, [R, R, B])
        assert self.verdict(RandomVerifier(0.0), [0, 2]) == (1, 0, [M, C, P])

    def test_constraints_and_stops_hold(self):
        for rule in (TopKVerifier(3), RelaxedVerifier(0.9), TypicalVerifier(0.01), ThresholdsVerifier(0.0)):
            assert self.verdict(rule, [1, 0], forbidden=torch.tensor([[True, False]])) == (0, 0, [C, P, P])
            assert self.verdict(rule, [1, 0], stop=torch.tensor([[True, False]])) == (0, 0, [C, P, P])
        lenient = TopKVerifier(3, rescue_stop_tokens=True)
        assert self.verdict(lenient, [1, 0], stop=torch.tensor([[True, False]])) == (2, 0, [R, M, B])
        assert self.verdict(TopKVerifier(3, max_rescue_fraction=0.5), [1, 1]) == (0, 0, [C, P, P])

    def test_nothing_that_is_not_finite_is_rescued(self):
        logits = self.SCORES.clone()
        logits[0, 0, 1] = math.nan
        assert self.verdict(RandomVerifier(1.0), [1, 0], TargetOutputs(logits, self.SCORES))[0] == 0

    def test_ensemble_replaces_with_its_own_token(self):
        draft = logs([0.0, 0.9, 0.1], [0.0, 0.9, 0.1])
        rule = EnsembleVerifier(0.5)
        # v = (0.25, 0.65, 0.1): token 1 wins, also where the draft's sample was another one
        assert self.verdict(rule, [1, 2], logits=draft) == (1, 1, [R, C, P])
        assert self.verdict(rule, [0, 1], logits=draft) == (0, 1, [C, P, P])  # strict would have accepted
        assert self.verdict(rule, [1, 1], logits=draft) == (2, 0, [R, R, B])  # the bonus is the target's
        assert self.verdict(rule, [1, 1], logits=draft, lengths=torch.tensor([1])) == (1, 0, [R, B, P])
        # what is barred is not put back by the replacement
        assert self.verdict(rule, [1, 1], logits=draft, forbidden=torch.tensor([[True, True]])) == (0, 0, [C, P, P])

    def test_autojudge_reads_the_drafted_token(self):
        hidden = torch.zeros(1, 3, 32)
        made = head(scale=0.0)
        with torch.no_grad():
            made.weight[0, 0] = 1.0
        hidden[0, 1, 0], hidden[0, 2, 0] = 2.0, -2.0  # P(important) 0.12 and 0.88
        rows = TargetOutputs(self.SCORES, self.SCORES, hidden)
        assert self.verdict(autojudge(made, 0.2), [1, 1], rows) == (1, 0, [R, C, P])
        assert self.verdict(autojudge(made, 0.1), [1, 1], rows) == (0, 0, [C, P, P])
        assert self.verdict(autojudge(made, 0.9), [1, 1], rows) == (2, 0, [R, R, B])

    @pytest.mark.parametrize("rule", [KLVerifier(), EnsembleVerifier()])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_rules_that_need_the_draft_say_so(self, rule, do_sample):
        rows = self.ROWS._replace(do_sample=do_sample)
        with pytest.raises(ValueError, match="draft's distribution"):
            rule.verify(Candidates(torch.tensor([[1, 1]])), rows)
        with pytest.raises(ValueError, match="one vocabulary"):
            rule.verify(Candidates(torch.tensor([[1, 1]]), logits=torch.zeros(1, 2, 5)), rows)
        empty = torch.empty(1, 0, dtype=torch.long)
        scores = self.SCORES[:, :1]
        assert rule.verify(Candidates(empty), TargetOutputs(scores, scores, None, do_sample)).n_accepted.item() == 0

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (lambda: TopKVerifier(0), ValueError, "k must be at least 1"),
            (lambda: TopKVerifier(1.5), TypeError, "whole number"),
            (lambda: RelaxedVerifier(1.5), ValueError, "delta must be between 0 and 1"),
            (lambda: TypicalVerifier(-0.1), ValueError, "epsilon"),
            (lambda: KLVerifier(math.nan), ValueError, "threshold"),
            (lambda: EnsembleVerifier("a"), TypeError, "weight must be a number"),
            (lambda: ThresholdsVerifier(2), ValueError, "single"),
            (lambda: FlyVerifier(0.3, 0), ValueError, "window"),
            (lambda: RandomVerifier(True), TypeError, "rate"),
            (lambda: RandomVerifier(0.5, max_rescue_fraction=2), ValueError, "max_rescue_fraction"),
            (lambda: autojudge("head", 0.5), ValueError, "autojudge=0.5: .*expects a JudgeHead"),
            (lambda: autojudge(head(), 3.0), ValueError, "autojudge=3: threshold must be .* got 3.0"),
        ],
    )
    def test_bad_settings(self, make, error, match):
        with pytest.raises(error, match=match):
            make()


class TestSampling:
    """Distributions of the first new token of a round; 6 sigma: a false alarm less than once in 10^8."""

    N = 60_000
    P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]

    def first_tokens(self, rule, ids: torch.Tensor, *, draft: bool = True) -> torch.Tensor:
        rows = TargetOutputs(*[logs(self.P, self.P).expand(self.N, 2, 3)] * 2, do_sample=True)
        candidates = Candidates(ids, logits=logs(self.Q).expand(self.N, 1, 3) if draft else None)
        verdict = rule.verify(candidates, rows)
        first = torch.where(verdict.n_accepted > 0, ids[:, 0], verdict.next_token)
        return torch.bincount(first, minlength=3) / self.N

    def check(self, shares, expected):
        for share, p in zip(shares.tolist(), expected, strict=True):
            assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / self.N) + 1e-9

    def drawn(self) -> torch.Tensor:
        return torch.multinomial(torch.tensor(self.Q), self.N, replacement=True).unsqueeze(1)

    @pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
    def test_ensemble_samples_the_mixture(self, weight):
        torch.manual_seed(0)
        mixture = [weight * p + (1 - weight) * q for p, q in zip(self.P, self.Q, strict=True)]
        self.check(self.first_tokens(EnsembleVerifier(weight), self.drawn()), mixture)

    def test_typical_accepts_and_else_draws_from_the_target(self):
        torch.manual_seed(0)
        rule = TypicalVerifier(0.25, 10.0)  # tokens 0 and 1 are typical
        ids = self.drawn()
        share = [q + self.Q[2] * p for q, p in zip(self.Q, self.P, strict=True)]
        share[2] = self.Q[2] * self.P[2]
        self.check(self.first_tokens(rule, ids), share)

    @pytest.mark.parametrize("accumulated", [1.0, 0.5, 0.3])
    def test_thresholds_by_hand(self, accumulated):
        """x = 1 of p = 0.3 is accepted with min(1, p / accumulated), else a draw from p without x."""
        torch.manual_seed(0)
        accept = min(1.0, self.P[1] / accumulated)
        rest = [self.P[0] / (1 - self.P[1]), 0.0, self.P[2] / (1 - self.P[1])]
        expected = [(1 - accept) * r for r in rest]
        expected[1] = accept
        ids = torch.ones(self.N, 1, dtype=torch.long)
        self.check(self.first_tokens(ThresholdsVerifier(1.0, accumulated), ids), expected)

    @pytest.mark.parametrize("rule", [KLVerifier(0.0), FlyVerifier(), RandomVerifier(0.0), RelaxedVerifier(0.0)])
    def test_strict_settings_keep_the_target_distribution(self, rule):
        torch.manual_seed(0)
        self.check(self.first_tokens(rule, self.drawn()), self.P)


RULES = [
    TopKVerifier(2),
    RelaxedVerifier(0.3),
    TypicalVerifier(0.1),
    KLVerifier(1.0),
    EnsembleVerifier(0.4),
    ThresholdsVerifier(0.03, 0.7),
    FlyVerifier(0.1, 3),
    RandomVerifier(0.4),
    autojudge(head(), 0.5),
    MarsVerifier(0.5),
    VllmFlyVerifier(0.3, 2),
    FuzzyVerifier(0.1),
    CascadeVerifier(0.3, "chow"),
    CascadeVerifier(0.0, "diff"),
    CascadeVerifier(0.2, "opt"),
    TokenCascadeVerifier(0.7),
]
SAMPLERS = [CactusVerifier(0.3), MentoredVerifier(0.2), BlockVerifier()]  # strict in greedy decoding


def one_token_greedy(target, draft, rule, ids, n_new: int, n_drafted: int) -> list[int]:
    """The naive loop: no caches, a full forward for every token of the draft and for every round."""
    answer, n_prompt = ids, ids.shape[1]
    while answer.shape[1] - n_prompt < n_new:
        k = min(n_drafted, n_prompt + n_new - answer.shape[1] - 1)
        drafted, scores = answer, []
        for _ in range(k):
            row = draft(drafted).logits[:, -1]
            scores.append(row)
            drafted = torch.cat([drafted, row.argmax(-1, keepdim=True)], dim=1)
            if drafted[0, -1] == 3:
                break
        k = drafted.shape[1] - answer.shape[1]
        output = target(drafted, output_hidden_states=True)
        logits = output.logits[:, -k - 1 :]
        proposed = drafted[:, answer.shape[1] :]
        candidates = Candidates(
            proposed, torch.tensor([k]), torch.stack(scores, 1) if k else None, None, proposed == 3,
            torch.tensor([answer.shape[1] - n_prompt]),
        )  # fmt: skip
        verdict = rule.verify(candidates, TargetOutputs(logits, logits, output.hidden_states[-1][:, -k - 1 :]))
        answer = torch.cat([answer, proposed[:, : verdict.n_accepted], verdict.next_token.view(1, 1)], dim=1)
        ends = (answer[0, n_prompt:] == 3).nonzero()
        if len(ends):
            return answer[0, : n_prompt + int(ends[0]) + 1].tolist()
    return answer[0].tolist()


class TestGenerate:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
    def test_greedy_equals_the_naive_loop(self, pair, rule):
        n_rescued = 0
        for seed in range(3):
            output = generate(pair, seed, judge=rule, max_new_tokens=24)
            naive = one_token_greedy(pair[0], pair[1], rule, prompt(seed), 24, 6)
            assert output.sequences[0].tolist() == naive
            n_rescued += output.judge_stats.rescued
        assert n_rescued > 0  # else nothing was compared

    @pytest.mark.parametrize("rule", RULES + SAMPLERS, ids=lambda rule: type(rule).__name__)
    def test_sampling_runs_and_repeats_with_its_seed(self, pair, rule):
        outputs = []
        for _ in range(2):
            torch.manual_seed(7)
            outputs.append(generate(pair, judge=rule, do_sample=True, max_new_tokens=12).sequences)
        assert outputs[0].equal(outputs[1])

    @pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.9])
    def test_ensemble_gives_the_tokens_of_upstream(self, pair, weight):
        differs = 0
        for seed in range(5):
            ours = generate(pair, seed, judge=EnsembleVerifier(weight)).sequences
            upstream = generate(pair, seed, assistant_ensemble_weight=weight).sequences
            assert ours.equal(upstream)
            strict = generate(pair, seed, judge=StrictVerifier()).sequences
            differs += not ours.equal(strict)
        assert differs > 0 or weight == 0.9  # the mixture says something else than the target somewhere

    @pytest.mark.parametrize(
        "rule",
        [
            TopKVerifier(1), RelaxedVerifier(0.0), TypicalVerifier(1.0, 1e9), KLVerifier(0.0), EnsembleVerifier(1.0),
            ThresholdsVerifier(1.0), FlyVerifier(1.0), RandomVerifier(0.0), autojudge(head(), 0.0), *SAMPLERS,
        ],
        ids=lambda rule: type(rule).__name__,
    )  # fmt: skip
    def test_the_strictest_setting_is_plain_greedy(self, pair, rule):
        for seed in range(2):
            plain = pair[0].generate(prompt(seed), max_new_tokens=30, do_sample=False)
            assert generate(pair, seed, judge=rule, max_new_tokens=30).sequences.equal(plain)

    def test_forbidden_words_never_appear(self, pair):
        free = generate(pair, judge=RandomVerifier(0.9)).sequences[0, 10:].tolist()
        banned = [[token] for token in set(free) if token != 3]
        for rule in (RandomVerifier(0.9), EnsembleVerifier(0.2), TypicalVerifier(0.01)):
            answer = generate(pair, judge=rule, bad_words_ids=banned).sequences[0, 10:].tolist()
            assert not {word for (word,) in banned} & set(answer)

    def test_prompt_lookup_has_no_draft_distribution(self, pair):
        ids = torch.tensor([[5, 6, 7, 8] * 4])
        with pytest.raises(ValueError, match="draft's distribution"):
            pair[0].generate(ids, prompt_lookup_num_tokens=3, judge=EnsembleVerifier(), max_new_tokens=8)
        output = pair[0].generate(ids, prompt_lookup_num_tokens=3, judge=TopKVerifier(40), max_new_tokens=8)
        assert output.shape[1] > 16
