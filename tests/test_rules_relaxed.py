"""Rules of 2024 to 2026 on hand-worked tensors, as distributions, and at their limits.

Every sampled distribution is compared by a chi-square test with a false-alarm probability of 1e-9; the seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_rules import B, C, M, P, R, logs

from hf_judge import JudgeConfig, JudgeHead, StrictVerifier
from hf_judge.head.distributions import kl_divergence
from hf_judge.rules import (
    BlockVerifier,
    CactusVerifier,
    CascadeVerifier,
    DiversedVerifier,
    FuzzyVerifier,
    MarsVerifier,
    MentoredVerifier,
    TokenCascadeVerifier,
    VllmFlyVerifier,
    block_accepts,
    cactus_distribution,
    fuzzy_accepts,
    mars_accepts,
    mentored_distribution,
    vllm_fly_accepts,
)
from hf_judge.rules.both.cascades import cascade_follows, trusted_tokens
from hf_judge.rules.both.fuzzy import DIVERGENCES
from hf_judge.rules.by_name import RULES, Setting, make_verifier, parse_settings
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import Candidates, TargetOutputs

N = 40_000
TARGET, DRAFT = [0.5, 0.3, 0.15, 0.05], [0.1, 0.5, 0.1, 0.3]


def sampled(rule, *, target=TARGET, draft=DRAFT, n=N, k=1, **more):
    """Verify n drafts of k tokens from a draft without memory; (the drafted ids, the verdict)."""
    torch.manual_seed(3)
    scores = logs(*[target] * (k + 1)).expand(n, -1, -1)
    ids = torch.multinomial(torch.tensor(draft), n * k, replacement=True).view(n, k)
    candidates = Candidates(ids, logits=logs(*[draft] * k).expand(n, -1, -1), **more)
    return ids, rule.verify(candidates, TargetOutputs(scores, scores, do_sample=True))


def first_tokens(rule, **more) -> list[int]:
    """How often each token came first in the rounds."""
    ids, verdict = sampled(rule, **more)
    first = torch.where(verdict.n_accepted > 0, ids[:, 0], verdict.next_token)
    return torch.bincount(first, minlength=4).tolist()


def agrees(counts: list[int], probabilities) -> bool:
    """Chi-square test at p = 1e-9; a token of probability 0 must not occur at all."""
    pairs = list(zip(counts, list(probabilities), strict=True))
    if any(count and not p for count, p in pairs):
        return False
    counts, probabilities = zip(*((count, p) for count, p in pairs if p), strict=True)
    total = sum(probabilities)
    assert total == pytest.approx(1, abs=1e-5)
    return bool(stats.chisquare(counts, [sum(counts) * p / total for p in probabilities]).pvalue > 1e-9)


def greedy(rule, ids, target, draft, logits=None):
    """One greedy round by hand: (accepted, next token, codes)."""
    scores = logs(*target)
    outputs = TargetOutputs(scores if logits is None else logits, scores)
    verdict = rule.verify(Candidates(torch.tensor([ids]), logits=logs(*draft)), outputs)
    return verdict.n_accepted.item(), verdict.next_token.item(), verdict.codes[0].tolist()


class TestMars:
    LOGITS = torch.tensor([[[10.0, 9.5, 9.4, 0.0], [10.0, 8.0, 1.0, 0.0], [-1.0, -1.01, -2.0, -3.0]]])

    def test_by_hand(self):
        runner_up = torch.tensor([[1, 1, 1]])
        assert mars_accepts(self.LOGITS, runner_up, 0.9).tolist() == [[True, False, False]]  # 0.95, 0.8, negative
        assert mars_accepts(self.LOGITS, runner_up, 0.7).tolist() == [[True, True, False]]
        assert not mars_accepts(self.LOGITS, torch.tensor([[2, 2, 2]]), 0.0).any()  # the third is never accepted
        assert not mars_accepts(self.LOGITS, runner_up, 1.0).any()

    def test_a_round(self):
        target = [[0.5, 0.45, 0.05]] * 3
        logits = torch.tensor([[[10.0, 9.9, 1.0]] * 3])
        assert greedy(MarsVerifier(), [1, 0], target, [[0.1, 0.8, 0.1]] * 2, logits) == (2, 0, [R, M, B])
        assert greedy(MarsVerifier(), [2, 0], target, [[0.1, 0.1, 0.8]] * 2, logits) == (0, 0, [C, P, P])


class TestVllmFly:
    def test_by_hand(self):
        """Entropy of the 3 best of (0.4, 0.3, 0.2, 0.1): -(0.4 ln 0.4 + 0.3 ln 0.3 + 0.2 ln 0.2) = 1.0496."""
        scores, lengths = logs([0.4, 0.3, 0.2, 0.1]).expand(1, 5, 4), torch.tensor([5])
        matched = torch.tensor([[True, False, True, True, False]])

        def accepted(threshold, window, top_k=3):
            return vllm_fly_accepts(matched, scores, lengths, threshold, window, top_k)[0].tolist()

        assert accepted(1.049, 2)[1]
        assert not accepted(1.050, 2)[1]
        assert not accepted(1.049, 2, top_k=2)[1]
        assert not accepted(1.049, 3)[1]  # the third token after it is a mismatch
        assert not accepted(0.0, 1)[4]  # no window fits after the last token

    def test_the_window_does_not_count_the_mismatch(self):
        from hf_judge.rules import fly_accepts

        scores, matched = logs([0.25] * 4).expand(1, 3, 4), torch.tensor([[False, True, True]])
        assert fly_accepts(matched, scores, torch.tensor([3]), 0.5, 3)[0, 0]
        assert not vllm_fly_accepts(matched, scores, torch.tensor([3]), 0.5, 3, 3)[0, 0]
        assert vllm_fly_accepts(matched, scores, torch.tensor([3]), 0.5, 2, 3)[0, 0]

    def test_what_is_ruled_out_is_not_accepted(self):
        scores = logs([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
        rule = VllmFlyVerifier(0.1, window=1)
        for token, n in ((1, 2), (2, 0)):
            verdict = rule.verify(Candidates(torch.tensor([[token, 0]])), TargetOutputs(scores, scores))
            assert verdict.n_accepted.item() == n


class TestFuzzy:
    def test_divergences_by_hand(self):
        p, q = [0.7, 0.3], [0.4, 0.6]
        m = [0.55, 0.45]

        def kl(a, b):
            return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

        expected = {
            "js": (kl(p, m) + kl(q, m)) / 2,
            "kl_target_draft": kl(p, q),
            "kl_draft_target": kl(q, p),
            "tv": 0.3,
        }
        for name, value in expected.items():
            assert DIVERGENCES[name](logs(p), logs(q)).item() == pytest.approx(value, rel=1e-5)
            assert fuzzy_accepts(logs(p), logs(q), value * 1.01, name).item()
            assert not fuzzy_accepts(logs(p), logs(q), value * 0.99, name).item()

    def test_js_takes_disjoint_supports(self):
        assert DIVERGENCES["js"](logs([1.0, 0.0]), logs([0.0, 1.0])).item() == pytest.approx(math.log(2))

    def test_it_reads_the_logits_before_the_processors(self):
        rule, ids = FuzzyVerifier(0.1, "tv"), torch.tensor([[1]])
        raw, processed = logs([0.5, 0.5], [0.5, 0.5]), logs([0.9, 0.1], [0.9, 0.1])
        candidates = Candidates(ids, logits=logs([0.1, 0.9]), raw_logits=raw[:, :1])
        assert rule.verify(candidates, TargetOutputs(raw, processed)).n_accepted.item() == 1
        assert rule.verify(candidates, TargetOutputs(processed, processed)).n_accepted.item() == 0

    @pytest.mark.parametrize("reduced", [True, False])
    def test_distributions(self, reduced):
        """Close models: the draft's own distribution; far ones: the target's."""
        assert agrees(first_tokens(FuzzyVerifier(5.0, reduced=reduced)), DRAFT)
        assert agrees(first_tokens(FuzzyVerifier(0.0, reduced=reduced)), TARGET)

    def test_the_paper_rejects_what_the_divergence_rejects(self):
        target, draft = [[0.9, 0.1]] * 2, [[0.1, 0.9]]
        assert greedy(FuzzyVerifier(0.01), [0], target, draft) == (1, 0, [M, B])
        assert greedy(FuzzyVerifier(0.01, reduced=False), [0], target, draft) == (0, 0, [C, P])


class TestCactus:
    def test_by_hand(self):
        """p(x) = 0.3, delta = 0.25: 0.3 + sqrt(0.5 * 0.21) = 0.6240; the others shrink by 0.3760 / 0.7."""
        found = cactus_distribution(torch.tensor([[TARGET]]), torch.tensor([[1]]), 0.25)[0, 0]
        raised = 0.3 + math.sqrt(0.5 * 0.3 * 0.7)
        expected = [p * (1 - raised) / 0.7 for p in TARGET]
        expected[1] = raised
        torch.testing.assert_close(found, torch.tensor(expected))

    @pytest.mark.parametrize("delta", [0.0, 0.01, 0.25, 1.0, 5.0])
    def test_the_bound(self, delta):
        """The chi-square divergence from p is at most 2 delta, and the KL divergence at most log(1 + 2 delta)."""
        torch.manual_seed(0)
        target = torch.randn(200, 5, 30).double().mul(3).softmax(dim=-1)
        ids = torch.randint(0, 30, (200, 5))
        found = cactus_distribution(target, ids, delta)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(200, 5, dtype=torch.double))
        chi_square = ((found - target) ** 2 / target).sum(dim=-1)
        assert (chi_square <= 2 * delta + 1e-9).all()
        assert (kl_divergence(found.log(), target.log()) <= math.log1p(2 * delta) + 1e-9).all()
        assert delta == 0 or (chi_square > 1.99 * delta).any()  # it is used up

    @pytest.mark.parametrize("delta", [0.0, 0.05, 0.5])
    def test_distribution(self, delta):
        """Sum over x of q(x) times what follows from x: x itself, or a draw from the residual of its distribution."""
        target, draft = torch.tensor(TARGET), torch.tensor(DRAFT)
        expected = torch.zeros(4)
        for x in range(4):
            relaxed = cactus_distribution(target.view(1, 1, 4), torch.tensor([[x]]), delta)[0, 0]
            accept = min(1.0, (relaxed[x] / draft[x]).item())
            residual = (relaxed - draft).clamp(min=0)
            expected[x] += draft[x] * accept
            expected += draft[x] * (1 - accept) * residual / residual.sum().clamp(min=1e-9)
        assert agrees(first_tokens(CactusVerifier(delta)), expected.tolist())
        assert agrees(first_tokens(CactusVerifier(delta)), TARGET) is (delta == 0)

    def test_a_sure_target_stays_sure(self):
        assert cactus_distribution(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1]]), 9.0).tolist() == [[[1.0, 0.0]]]
        assert cactus_distribution(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0]]), 9.0).tolist() == [[[1.0, 0.0]]]


class TestCascades:
    P, Q = torch.tensor([[[0.6, 0.3, 0.1]]]), torch.tensor([[[0.2, 0.5, 0.3]]])  # TV = 0.4

    @pytest.mark.parametrize(
        ("deferral", "border"),
        [("chow", 0.5), ("diff", 0.1), ("opt", 0.25)],  # 0.5 >= 1 - a; 0.5 >= 0.6 - a; 0.5 >= 0.6 - 0.4 a
    )
    def test_deferral_by_hand(self, deferral, border):
        assert cascade_follows(self.P, self.Q, border + 0.01, deferral).item()
        assert not cascade_follows(self.P, self.Q, border - 0.01, deferral).item()

    def test_trusted_tokens_by_hand(self):
        def trusted(alpha, version):
            return trusted_tokens(self.P, self.Q, alpha, version)[0, 0].tolist()

        assert trusted(0.15, 1) == [False, True, False]  # q >= 0.45
        assert trusted(0.35, 2) == [True, True, False]  # p >= 0.25
        assert trusted(0.45, 3) == [True, False, False]  # p >= 0.33
        assert trusted(0.55, 3) == [True, True, False]  # p >= 0.27

    def test_greedy_rounds(self):
        target, draft = [[0.6, 0.3, 0.1]] * 3, [[0.2, 0.5, 0.3]] * 2
        assert greedy(CascadeVerifier(0.3, "opt"), [1, 2], target, draft) == (2, 0, [R, R, B])
        assert greedy(CascadeVerifier(0.2, "opt"), [1, 0], target, draft) == (0, 0, [C, P, P])
        assert greedy(TokenCascadeVerifier(0.55), [1, 2], target, draft) == (1, 0, [R, C, P])
        assert greedy(TokenCascadeVerifier(0.45), [0, 1], target, draft) == (1, 0, [M, C, P])

    def test_distributions(self):
        assert agrees(first_tokens(CascadeVerifier(0.6, "chow")), DRAFT)  # max q = 0.5 >= 0.4
        assert agrees(first_tokens(CascadeVerifier(0.4, "chow")), TARGET)
        for alpha, kept in ((0.45, [0, 1]), (0.75, [0, 1, 2]), (-0.1, [])):
            rest = 1 - sum(DRAFT[v] for v in kept)
            expected = [(DRAFT[v] if v in kept else 0) + rest * TARGET[v] for v in range(4)]
            assert agrees(first_tokens(TokenCascadeVerifier(alpha)), expected)

    def test_sureness_is_read_before_the_processors(self):
        raw = logs([0.2, 0.5, 0.3])
        candidates = Candidates(torch.tensor([[1]]), logits=logs([0.0, 1.0, 0.0]), raw_logits=raw)
        outputs = TargetOutputs(logs(*[[0.6, 0.3, 0.1]] * 2), logs(*[[1.0, 0.0, 0.0]] * 2))
        assert CascadeVerifier(0.4, "chow").verify(candidates, outputs).n_accepted.item() == 0
        assert CascadeVerifier(0.6, "chow").verify(candidates, outputs).n_accepted.item() == 1

    def test_what_the_target_rules_out_is_not_trusted(self):
        assert first_tokens(TokenCascadeVerifier(1.0), target=[0.5, 0.5, 0.0, 0.0])[2:] == [0, 0]


class TestMentored:
    def test_by_hand(self):
        """p = (0.8, 0.2), q = (0.2, 0.8): pi = (1 - t, t) with the largest t that keeps KL(p || pi) = D."""
        target, draft = torch.tensor([[[0.8, 0.2]]]), torch.tensor([[[0.2, 0.8]]])
        found = mentored_distribution(target, draft, 0.1)[0, 0]
        divergence = 0.8 * math.log(0.8 / found[0]) + 0.2 * math.log(0.2 / found[1])
        assert divergence == pytest.approx(0.1, abs=1e-6)
        assert found[1] > 0.2

    @pytest.mark.parametrize("divergence", [0.0, 0.05, 0.3, 2.0])
    def test_the_bound_and_that_nothing_accepts_more(self, divergence):
        """Compared with the best of a convex solver's distributions, which knows nothing of the closed form."""
        from scipy.optimize import minimize

        torch.manual_seed(1)
        for _ in range(4):
            target, draft = torch.randn(2, 5).double().mul(1.5).softmax(dim=-1)
            found = mentored_distribution(target.view(1, 1, 5), draft.view(1, 1, 5), divergence)[0, 0]
            assert found.sum().item() == pytest.approx(1, abs=1e-9)
            assert (target * (target / found).log()).sum() <= divergence + 1e-9
            p, q = target.numpy(), draft.numpy()
            # variables: pi and the accepted mass a <= pi, a <= q
            best = minimize(
                lambda z: -z[5:].sum(), [*p, *(0.5 * p.clip(max=q))], method="SLSQP", bounds=[(1e-9, 1)] * 10,
                constraints=[
                    {"type": "eq", "fun": lambda z: z[:5].sum() - 1},
                    {"type": "ineq", "fun": lambda z, p=p: divergence + 1e-9 - (p * np.log(p / z[:5])).sum()},
                    {"type": "ineq", "fun": lambda z: z[:5] - z[5:]},
                    {"type": "ineq", "fun": lambda z, q=q: q - z[5:]},
                ],
                options={"maxiter": 500, "ftol": 1e-10},
            )  # fmt: skip
            accepted = torch.minimum(found, draft).sum().item()
            assert accepted >= -best.fun - 1e-3
            assert divergence > 0 or accepted == pytest.approx(torch.minimum(target, draft).sum().item(), abs=1e-6)

    @pytest.mark.parametrize("divergence", [0.0, 0.1, 9.0])
    def test_distribution(self, divergence):
        expected = mentored_distribution(torch.tensor([[TARGET]]), torch.tensor([[DRAFT]]), divergence)[0, 0]
        assert agrees(first_tokens(MentoredVerifier(divergence)), expected.tolist())
        if divergence == 9.0:
            torch.testing.assert_close(expected, torch.tensor(DRAFT).double())

    def test_impossible_tokens(self):
        target, draft = torch.tensor([[[0.7, 0.3, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.5, 0.5, 0.0]]])
        found = mentored_distribution(target, draft, 0.2)
        assert found[0, 0, 2:].tolist() == [0, 0]
        assert found.sum().item() == pytest.approx(1)
        same = mentored_distribution(draft, draft, 0.0)
        torch.testing.assert_close(same, draft.double())


class TestBlock:
    def test_the_papers_example(self):
        """Tokens a, b; p = (1/3, 2/3), q = (2/3, 1/3): 11/9 accepted of two, where token verification accepts 10/9."""
        n, options = 60_000, {"target": [1 / 3, 2 / 3], "draft": [2 / 3, 1 / 3], "k": 2}
        for rule, expected in ((BlockVerifier(), 11 / 9), (StrictVerifier(), 10 / 9)):
            _, verdict = sampled(rule, n=n, **options)
            accepted = verdict.n_accepted.double()
            # 6 standard errors: a false alarm in 5 * 10^8
            assert abs(accepted.mean().item() - expected) < 6 * accepted.std().item() / math.sqrt(n)

    def test_by_hand(self):
        """w_1 = min(p(a)/q(a), 1) = 1/2, w_2 = min(w_1 p(b)/q(b), 1) = 1; h_1 = 0, for 1/2 * 2/3 - 1/3 = 0; h_2 = 1."""
        target = torch.tensor([[[1 / 3, 2 / 3]] * 3])
        draft = torch.tensor([[[2 / 3, 1 / 3]] * 2])
        accepted, weights = block_accepts(
            target, draft, torch.tensor([[0, 1]]), torch.tensor([2]), torch.tensor([[0.9] * 2])
        )
        assert accepted.tolist() == [[True, True]]
        torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5]]))
        only_one, _ = block_accepts(
            target, draft, torch.tensor([[0, 1]]), torch.tensor([1]), torch.tensor([[0.4, 0.9]])
        )
        assert only_one.tolist() == [[True, False]]

    def test_it_loses_nothing(self):
        """The first two tokens, whether the round gives them or the next one, with models that remember: 16 cells."""
        torch.manual_seed(5)
        n, k = 60_000, 2
        rows = torch.randn(2, 21, 4).softmax(dim=-1)  # distributions after "", "a".. and "aa"..: target and draft

        def after(prefix: torch.Tensor) -> torch.Tensor:  # (n, i) tokens -> index of their distributions
            place = torch.zeros(n, dtype=torch.long)
            for token in prefix.T:
                place = place * 4 + token + 1
            return place

        ids = torch.zeros(n, 0, dtype=torch.long)
        for _ in range(k):
            drawn = torch.multinomial(rows[1][after(ids)], 1)
            ids = torch.cat([ids, drawn], dim=1)
        places = torch.stack([after(ids[:, :i]) for i in range(k + 1)], dim=1)
        scores = rows[0][places].log()
        candidates = Candidates(ids, logits=rows[1][places[:, :k]].log())
        verdict = BlockVerifier().verify(candidates, TargetOutputs(scores, scores, do_sample=True))
        strict = StrictVerifier().verify(candidates, TargetOutputs(scores, scores, do_sample=True))
        assert verdict.n_accepted.sum() > 1.01 * strict.n_accepted.sum()
        first = torch.where(verdict.n_accepted > 0, ids[:, 0], verdict.next_token)
        own = torch.multinomial(rows[0][after(first.unsqueeze(1))], 1).squeeze(1)  # the next round's, plainly drawn
        second = torch.where(
            verdict.n_accepted > 1, ids[:, 1], torch.where(verdict.n_accepted == 1, verdict.next_token, own)
        )
        counts = torch.bincount(first * 4 + second, minlength=16).tolist()
        expected = (rows[0][0].unsqueeze(1) * rows[0][1:5]).flatten()
        assert agrees(counts, expected.tolist())
        assert not agrees(counts, (rows[1][0].unsqueeze(1) * rows[1][1:5]).flatten().tolist())

    @pytest.mark.parametrize("k", [1, 2, 5, 12])
    def test_it_accepts_at_least_as_much_as_token_verification(self, k):
        """Random drafts of random models; the theorem orders the expectations."""
        torch.manual_seed(k)
        n, vocabulary = 20_000, 6
        target, draft = (torch.randn(n, k + 1, vocabulary).mul(2).softmax(dim=-1) for _ in range(2))
        ids = torch.multinomial(draft[:, :k].flatten(0, 1), 1).view(n, k)
        outputs = TargetOutputs(target.log(), target.log(), do_sample=True)
        candidates = Candidates(ids, logits=draft[:, :k].log())
        block = BlockVerifier().verify(candidates, outputs).n_accepted.double()
        token = StrictVerifier().verify(candidates, outputs).n_accepted.double()
        # 6 standard errors of the difference: a false alarm in 5 * 10^8
        difference = block - token
        assert difference.mean().item() > -6 * difference.std().item() / math.sqrt(n) - 1e-9
        assert k == 1 or difference.mean() > 0

    def test_lengths_and_impossible_tokens(self):
        ids, verdict = sampled(BlockVerifier(), k=3, lengths=torch.full((N,), 2))
        assert verdict.n_accepted.max() == 2
        _, verdict = sampled(BlockVerifier(), k=3, target=[0.5, 0.5, 0.0, 0.0])
        taken = ids[torch.arange(3) < verdict.n_accepted.unsqueeze(1)]
        assert taken.max() <= 1
        assert verdict.next_token.max() <= 1

    def test_greedy_is_strict(self):
        target, draft = [[0.6, 0.3, 0.1]] * 3, [[0.2, 0.5, 0.3]] * 2
        assert greedy(BlockVerifier(), [0, 1], target, draft) == (1, 0, [M, C, P])


def diversed_head(**more) -> JudgeHead:
    """A head whose logit is the first number of the state."""
    made = JudgeHead(JudgeConfig(hidden_size=4, provenance={"labels": {"state_of": "before"}} | more))
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        made.bias.zero_()
    return made.requires_grad_(False)


class TestDiversed:
    def verify(self, rule, first: float, *, do_sample=False, n=1, ids=None):
        """One drafted token; the state before it starts with `first`, the state at it with the opposite."""
        hidden = torch.zeros(n, 2, 4)
        hidden[:, 0, 0], hidden[:, 1, 0] = first, -first
        scores = logs(TARGET, TARGET).expand(n, -1, -1)
        ids = torch.tensor([[1]]) if ids is None else ids
        candidates = Candidates(ids, logits=logs(DRAFT).expand(n, -1, -1))
        return rule.verify(candidates, TargetOutputs(scores, scores, hidden, do_sample))

    def test_the_state_before_the_token_chooses_the_weight(self):
        """p = (0.5, 0.3, ...), q = (0.1, 0.5, ...): the mixture's best is 1 where w < 2/3, that is sigmoid(x) > 1/3."""
        border = -math.log(2)
        assert self.verify(DiversedVerifier(head=diversed_head()), border + 0.01).n_accepted.item() == 1
        assert self.verify(DiversedVerifier(head=diversed_head()), border - 0.01).n_accepted.item() == 0
        assert self.verify(DiversedVerifier(head=diversed_head(), bias=0.1), border - 0.01).n_accepted.item() == 1

    @pytest.mark.parametrize("logit", [-30.0, -0.7, 0.9, 30.0])
    def test_it_samples_the_mixture(self, logit):
        torch.manual_seed(0)
        ids = torch.multinomial(torch.tensor(DRAFT), N, replacement=True).unsqueeze(1)
        verdict = self.verify(DiversedVerifier(head=diversed_head()), logit, do_sample=True, n=N, ids=ids)
        first = torch.where(verdict.n_accepted > 0, ids[:, 0], verdict.next_token)
        follow = 1 / (1 + math.exp(-logit))
        mixture = [follow * q + (1 - follow) * p for p, q in zip(TARGET, DRAFT, strict=True)]
        assert agrees(torch.bincount(first, minlength=4).tolist(), mixture)

    def test_a_state_that_is_not_finite_is_strict(self):
        assert self.verify(DiversedVerifier(head=diversed_head(), bias=9.0), math.nan).n_accepted.item() == 0

    def test_other_heads_are_refused(self):
        with pytest.raises(ValueError, match="trained on the state at the token"):
            DiversedVerifier(head=diversed_head(labels={"after_mistake": "ignore"}))
        with pytest.raises(TypeError, match="expects a JudgeHead, got NoneType"):
            DiversedVerifier()
        with pytest.raises(ValueError, match="reads the state alone"):
            DiversedVerifier(head=JudgeHead(JudgeConfig(hidden_size=4, extra_features=["margin"])))
        with pytest.raises(ValueError, match="pass it to DiversedVerifier"):
            JudgeCandidateVerifier(diversed_head())

    def test_on_the_command_line(self):
        heads = {"diversed": diversed_head()}
        assert make_verifier(Setting("diversed", -2.0), heads).bias == -2.0
        with pytest.raises(ValueError, match="needs its head: pass --diversed"):
            parse_settings(["diversed"], {})


STRICTEST = {
    "mars": 1.0, "vllm-fly": 9.0, "fsd": 0.0, "cactus": 0.0, "mentored": 0.0, "cascade-chow": -1.0,
    "cascade-diff": -1.1, "cascade-opt": -1e4, "cascade-token": -0.1, "block": None,
}  # fmt: skip
LENIENT = {"fsd": 1.0, "cascade-chow": 1.0, "cascade-diff": 1.0, "cascade-opt": 1.01, "cascade-token": 1.0}
LENIENT_SAMPLING = LENIENT | {"cactus": 1e9, "mentored": 1e3}


class TestLimits:
    """The strict end of a rule's number is strict verification; the lenient end accepts all that the target allows."""

    @pytest.mark.parametrize("name", STRICTEST)
    def test_strict_end(self, name):
        rule = make_verifier(Setting(name, STRICTEST[name]), {})
        torch.manual_seed(0)
        scores = torch.randn(50, 9, 12) * 2
        ids = torch.where(torch.rand(50, 8) < 0.7, scores[:, :8].argmax(dim=-1), torch.randint(0, 12, (50, 8)))
        candidates, outputs = Candidates(ids, logits=torch.randn(50, 8, 12)), TargetOutputs(scores, scores)
        mine, strict = rule.verify(candidates, outputs), StrictVerifier().verify(candidates, outputs)
        assert mine.n_accepted.equal(strict.n_accepted)
        assert mine.next_token.equal(strict.next_token)
        assert agrees(first_tokens(rule), TARGET)

    @pytest.mark.parametrize("name", LENIENT_SAMPLING)
    def test_lenient_end(self, name):
        rule = make_verifier(Setting(name, LENIENT_SAMPLING[name]), {})
        _, verdict = sampled(rule, k=4)
        assert (verdict.n_accepted == 4).all()
        if name in LENIENT:
            torch.manual_seed(0)
            scores = torch.randn(50, 9, 12) * 2
            candidates = Candidates(torch.randint(0, 12, (50, 8)), logits=torch.randn(50, 8, 12))
            assert (rule.verify(candidates, TargetOutputs(scores, scores)).n_accepted == 8).all()

    @pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].needs_head])
    def test_constraints_hold(self, name):
        """What the target rules out appears nowhere, at the most lenient value of every rule."""
        rule = make_verifier(Setting(name, RULES[name].sweep[0] if RULES[name].sweep else None), {})
        scores = logs(*[[0.5, 0.5, 0.0, 0.0]] * 4).expand(500, -1, -1)
        torch.manual_seed(0)
        ids = torch.randint(0, 4, (500, 3))
        candidates = Candidates(ids, logits=logs(*[[0.25] * 4] * 3).expand(500, -1, -1), forbidden=ids > 1)
        for do_sample in (False, True):
            verdict = rule.verify(candidates, TargetOutputs(scores, scores, do_sample=do_sample))
            assert ids[torch.arange(3) < verdict.n_accepted.unsqueeze(1)].max() <= 1
            assert verdict.next_token.max() <= 1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MarsVerifier(1.5), ValueError, "ratio must be between 0 and 1"),
        (lambda: CactusVerifier(-1), ValueError, "delta must be at least 0"),
        (lambda: FuzzyVerifier(0.1, "euclid"), ValueError, "divergence must be one of js, .* got 'euclid'"),
        (lambda: CascadeVerifier(math.nan), ValueError, "alpha must be"),
        (lambda: TokenCascadeVerifier(2.0), ValueError, "alpha must be at most 1"),
        (lambda: CascadeVerifier(0.0, "token"), ValueError, "deferral must be 'chow', 'diff' or 'opt', got 'token'"),
        (lambda: TokenCascadeVerifier(0.1, 4), ValueError, "version must be between 1 and 3"),
        (lambda: MentoredVerifier("a"), TypeError, "divergence must be a number"),
        (lambda: VllmFlyVerifier(0.3, 0), ValueError, "window must be at least 1"),
    ],
)
def test_bad_settings(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "rule", [CactusVerifier(), FuzzyVerifier(), CascadeVerifier(), TokenCascadeVerifier(), MentoredVerifier()]
)
@pytest.mark.parametrize("do_sample", [False, True])
def test_rules_of_both_models_say_so(rule, do_sample):
    scores = logs([0.5, 0.5], [0.5, 0.5])
    outputs = TargetOutputs(scores, scores, do_sample=do_sample)
    with pytest.raises(ValueError, match=f"{type(rule).__name__} compares .* draft's distribution"):
        rule.verify(Candidates(torch.tensor([[1]])), outputs)
    empty = Candidates(torch.empty(1, 0, dtype=torch.long))
    assert rule.verify(empty, TargetOutputs(scores[:, :1], scores[:, :1], None, do_sample)).n_accepted.item() == 0
