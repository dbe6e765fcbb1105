"""The rules on hand-made tensors, as properties, and as distributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_head

from hf_judge import CandidateVerifier, JudgeCandidateVerifier, StrictVerifier, VerdictCode
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs
from hf_judge.verify.strict import next_token, strict_choice

M, R, C, B, P = (int(code) for code in VerdictCode)
FALSE_ALARM = 1e-6  # chance that a statistical test below fails although the code is right


def one_hot_rows(tokens: list[list[int]], vocabulary: int = 6, **kwargs) -> TargetOutputs:
    """Rows whose argmax is the given token, with a margin."""
    scores = torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float() * 5
    return TargetOutputs(logits=scores, scores=scores, **kwargs)


def yes(*pattern: list[int]) -> torch.Tensor:
    return torch.tensor(pattern).bool()


def as_lists(verdict) -> tuple:
    return verdict.n_accepted.tolist(), verdict.next_token.tolist(), verdict.codes.tolist()


class TestHandMade:
    """The target says 1 2 3 4; drafts differ from it at chosen places."""

    ROWS = one_hot_rows([[1, 2, 3, 4]])

    @pytest.mark.parametrize(
        ("draft", "judged", "expected"),
        [
            ([1, 2, 3], [0, 0, 0], ([3], [4], [[M, M, M, B]])),
            ([1, 5, 3], [0, 0, 0], ([1], [2], [[M, C, P, P]])),
            ([0, 2, 3], [0, 0, 0], ([0], [1], [[C, P, P, P]])),
            ([0, 2, 3], [1, 0, 0], ([3], [4], [[R, M, M, B]])),
            ([1, 5, 3], [1, 1, 1], ([3], [4], [[M, R, M, B]])),
            ([1, 5, 0], [0, 1, 0], ([2], [3], [[M, R, C, P]])),
            ([5, 5, 5], [1, 1, 1], ([3], [4], [[R, R, R, B]])),
            ([5, 5, 5], [0, 1, 1], ([0], [1], [[C, P, P, P]])),
        ],
    )
    def test_greedy(self, draft, judged, expected):
        assert as_lists(decide(Candidates(torch.tensor([draft])), self.ROWS, yes(judged))) == expected

    def test_strict_is_a_judge_that_says_no(self):
        draft = Candidates(torch.tensor([[1, 5, 3]]))
        assert as_lists(decide(draft, self.ROWS)) == as_lists(decide(draft, self.ROWS, yes([0, 0, 0])))

    def test_no_draft(self):
        rows = one_hot_rows([[4], [2]])
        empty = Candidates(torch.empty(2, 0, dtype=torch.long))
        for judged in (None, torch.empty(2, 0, dtype=torch.bool)):
            assert as_lists(decide(empty, rows, judged)) == ([0, 0], [4, 2], [[B], [B]])
        for logits in (None, torch.empty(2, 0, 6)):
            sampled = decide(empty._replace(logits=logits), rows._replace(scores=rows.scores * 100, do_sample=True))
            assert as_lists(sampled) == ([0, 0], [4, 2], [[B], [B]])

    def test_ragged_batch(self):
        """Padding is never accepted, and a short draft that was accepted whole ends with a bonus."""
        rows = one_hot_rows([[1, 2, 3, 4]] * 4)
        draft = Candidates(torch.tensor([[1, 2, 3]] * 4), lengths=torch.tensor([3, 2, 1, 0]))
        verdict = decide(draft, rows, torch.ones(4, 3, dtype=torch.bool))
        expected = [[M, M, M, B], [M, M, B, P], [M, B, P, P], [B, P, P, P]]
        assert as_lists(verdict) == ([3, 2, 1, 0], [4, 3, 2, 1], expected)

    def test_forbidden_tokens_are_not_rescued_but_may_match(self):
        draft = Candidates(torch.tensor([[0, 2, 5]]), forbidden=yes([1, 1, 1]))
        verdict = decide(draft, self.ROWS, yes([1, 1, 1]))
        assert as_lists(verdict) == ([0], [1], [[C, P, P, P]])
        assert verdict.n_refused.tolist() == [1]  # what follows the rejection was never decided on
        matched = decide(Candidates(torch.tensor([[1, 2, 3]]), forbidden=yes([1, 1, 1])), self.ROWS, yes([1, 1, 1]))
        assert as_lists(matched) == ([3], [4], [[M, M, M, B]])
        assert matched.n_refused.tolist() == [0]

    def test_stop_tokens(self):
        draft = Candidates(torch.tensor([[1, 5, 3]]), stop=yes([0, 1, 0]))
        refused = decide(draft, self.ROWS, yes([1, 1, 1]))
        assert as_lists(refused) == ([1], [2], [[M, C, P, P]])
        assert refused.n_refused.tolist() == [1]
        assert as_lists(decide(draft, self.ROWS, yes([1, 1, 1]), rescue_stop_tokens=True))[0] == [3]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("where", ["hidden", "logits"])
    def test_non_finite_values_rescue_nothing(self, bad, where):
        draft = Candidates(torch.tensor([[5, 5, 5]]))
        hidden, logits = torch.zeros(1, 4, 8), self.ROWS.logits.clone()
        if where == "hidden":
            hidden[0, 2, 3] = bad  # the reaction to the draft's second token
        else:
            logits[0, 1, 5] = bad  # the score of the draft's second token
        rows = self.ROWS._replace(hidden=hidden, logits=logits)
        verdict = decide(draft, rows, yes([1, 1, 1]))
        assert as_lists(verdict) == ([1], [2], [[R, C, P, P]])
        assert verdict.n_non_finite.tolist() == [1]

    def test_non_finite_state_of_the_prefix_does_not_matter(self):
        hidden = torch.zeros(1, 4, 8)
        hidden[0, 0] = float("nan")  # row 0 belongs to the last token of the prefix: nobody judges it
        verdict = decide(Candidates(torch.tensor([[5, 5, 5]])), self.ROWS._replace(hidden=hidden), yes([1, 1, 1]))
        assert verdict.n_accepted.tolist() == [3]
        assert verdict.n_non_finite.tolist() == [0]

    def test_budget_counts_what_was_before(self):
        """Half of the answer may be rescued; 4 of 10 tokens so far were."""
        draft = Candidates(torch.tensor([[5, 5, 5]]), n_generated=torch.tensor([10]), n_rescued=torch.tensor([4]))
        verdict = decide(draft, self.ROWS, yes([1, 1, 1]), max_rescue_fraction=0.5)
        # 5 of 11, 6 of 12, but not 7 of 13
        assert as_lists(verdict) == ([2], [3], [[R, R, C, P]])

    @pytest.mark.parametrize(
        ("draft", "judged", "window", "expected"),
        [
            ([5, 2, 5], [1, 0, 0], 1, ([2], [3], [[R, M, C, P]])),  # the correction comes two tokens after the rescue
            ([5, 2, 5], [1, 0, 0], 2, ([0], [1], [[C, P, P, P]])),
            ([5, 5, 5], [1, 1, 0], 1, ([0], [1], [[C, P, P, P]])),  # an undone rescue is a correction itself
            ([5, 2, 3], [1, 0, 0], 9, ([3], [4], [[R, M, M, B]])),  # nothing is corrected
        ],
    )
    def test_a_rescue_that_leads_to_a_correction_is_undone(self, draft, judged, window, expected):
        verdict = decide(Candidates(torch.tensor([draft])), self.ROWS, yes(judged), rescue_window=window)
        assert as_lists(verdict) == expected


class TestJudge:
    """JudgeCandidateVerifier: which row it reads, and its threshold."""

    @staticmethod
    def rows_and_head():
        head = random_head(width=4)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        hidden = torch.zeros(1, 4, 4)
        hidden[0, :, 0] = torch.tensor([9.0, 2.0, -1.0, 0.5])  # sigmoid: (unused) 0.88 0.27 0.62
        return one_hot_rows([[1, 2, 3, 4]], hidden=hidden), head

    def test_reads_the_reaction_to_the_token_itself(self):
        rows, head = self.rows_and_head()
        draft = Candidates(torch.tensor([[5, 5, 5]]))
        accepted = {t: JudgeCandidateVerifier(head, t).verify(draft, rows).n_accepted.item() for t in (0.2, 0.5, 0.9)}
        assert accepted == {0.2: 3, 0.5: 1, 0.9: 0}

    def test_thresholds_0_and_1(self):
        rows, head = self.rows_and_head()
        draft = Candidates(torch.tensor([[5, 5, 5]]))
        assert as_lists(JudgeCandidateVerifier(head, 0).verify(draft, rows)) == ([3], [4], [[R, R, R, B]])
        huge = rows._replace(hidden=torch.full((1, 4, 4), 1e30))  # sigmoid rounds to 1.0, which is not above 1
        assert as_lists(JudgeCandidateVerifier(head, 1).verify(draft, huge)) == ([0], [1], [[C, P, P, P]])

    def test_above_not_at_the_threshold(self):
        rows, head = self.rows_and_head()
        flat = rows._replace(hidden=torch.zeros(1, 4, 4))
        assert JudgeCandidateVerifier(head, 0.5).verify(Candidates(torch.tensor([[5, 5, 5]])), flat).n_accepted == 0

    def test_head_threshold_is_the_default(self):
        assert JudgeCandidateVerifier(random_head(threshold=0.7)).threshold == 0.7
        assert JudgeCandidateVerifier(random_head(threshold=0.7), 0).threshold == 0.0

    def test_with_threshold_keeps_the_settings_and_not_the_stats(self):
        judge = JudgeCandidateVerifier(random_head(), rescue_stop_tokens=True, max_rescue_fraction=0.2, rescue_window=3)
        other = judge.with_threshold(0.1)
        assert other.rescue_window == 3
        assert (other.threshold, other.rescue_stop_tokens, other.max_rescue_fraction) == (0.1, True, 0.2)
        assert other.head is judge.head
        assert other.stats is not judge.stats

    def test_both_have_the_protocol(self):
        assert isinstance(StrictVerifier(), CandidateVerifier)
        assert isinstance(JudgeCandidateVerifier(random_head()), CandidateVerifier)
        assert not isinstance(random_head(), CandidateVerifier)

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
    def test_numbers_outside_their_range(self, value):
        with pytest.raises(ValueError, match=r"^threshold must be between 0 and 1"):
            JudgeCandidateVerifier(random_head(), value)
        with pytest.raises(ValueError, match=r"^max_rescue_fraction must be between 0 and 1"):
            JudgeCandidateVerifier(random_head(), max_rescue_fraction=value)

    @pytest.mark.parametrize(
        ("value", "error"), [(-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
    )
    def test_windows_that_are_none(self, value, error):
        with pytest.raises(error, match=r"^rescue_window must be"):
            JudgeCandidateVerifier(random_head(), rescue_window=value)

    def test_head_window_is_the_default(self):
        head = random_head(rescue_window=4)
        assert JudgeCandidateVerifier(head).rescue_window == 4
        assert JudgeCandidateVerifier(head, rescue_window=0).rescue_window == 0

    def test_wrong_types(self):
        with pytest.raises(TypeError, match=r"expects a JudgeHead, got Linear"):
            JudgeCandidateVerifier(torch.nn.Linear(4, 1))
        for value in ("0.5", True, [0.5]):
            with pytest.raises(TypeError, match="threshold must be a number between 0 and 1"):
                JudgeCandidateVerifier(random_head(), value)


@st.composite
def rounds(draw):
    """A random round: batch, ragged lengths, masks, counts so far, and the judge's opinion."""
    batch, k, vocabulary = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def coin(probability, shape=(batch, k)):
        return torch.rand(shape, generator=generator) < probability

    scores = torch.randn(batch, k + 1, vocabulary, generator=generator)
    ids = torch.randint(0, vocabulary, (batch, k), generator=generator)
    agree = coin(0.6)
    ids = torch.where(agree, scores[:, :k].argmax(-1), ids)
    n_generated = torch.randint(0, 20, (batch,), generator=generator)
    do_sample = draw(st.booleans())
    candidates = Candidates(
        ids=ids,
        lengths=torch.randint(0, k + 1, (batch,), generator=generator) if draw(st.booleans()) else None,
        logits=torch.randn(batch, k, vocabulary, generator=generator) if draw(st.booleans()) else None,
        forbidden=coin(0.2) if draw(st.booleans()) else None,
        stop=coin(0.2) if draw(st.booleans()) else None,
        n_generated=n_generated if draw(st.booleans()) else None,
        n_rescued=torch.zeros_like(n_generated) if draw(st.booleans()) else None,
    )
    hidden = torch.randn(batch, k + 1, 3, generator=generator)
    hidden[coin(0.1, (batch, k + 1))] = float("nan")
    rows = TargetOutputs(
        logits=scores * 2, scores=scores, hidden=hidden if draw(st.booleans()) else None, do_sample=do_sample
    )
    settings_ = {
        "rescue_stop_tokens": draw(st.booleans()),
        "max_rescue_fraction": draw(st.sampled_from([None, 0.0, 0.1, 0.3, 1.0])),
        "rescue_window": draw(st.sampled_from([0, 1, 2, 5])),
    }
    return candidates, rows, coin(draw(st.sampled_from([0.0, 0.5, 1.0]))), settings_


def copied(value):
    return type(value)(*(item.clone() if isinstance(item, torch.Tensor) else item for item in value))


def same(left, right) -> bool:
    return all(
        torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(left, right, strict=True)
    )


class TestProperties:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(rounds())
    def test_of_every_verdict(self, round_):
        candidates, rows, judged, options = round_
        before = copied(candidates), copied(rows), judged.clone()
        verdict = decide(candidates, rows, judged, **options)

        assert same(candidates, before[0])
        assert same(rows, before[1])
        assert torch.equal(judged, before[2])

        batch, k = candidates.ids.shape
        lengths = candidates.lengths if candidates.lengths is not None else torch.full((batch,), k)
        assert verdict.n_accepted.shape == verdict.next_token.shape == (batch,)
        assert verdict.codes.shape == (batch, k + 1)
        assert verdict.codes.dtype == torch.int8
        best = rows.scores.argmax(-1)
        for row in range(batch):
            n, codes = int(verdict.n_accepted[row]), verdict.codes[row].tolist()
            assert 0 <= n <= lengths[row]
            assert set(codes[:n]) <= {M, R}
            assert codes[n] == (B if n == lengths[row] else C)
            assert set(codes[n + 1 :]) <= {P}
            assert 0 <= verdict.next_token[row] < rows.scores.shape[-1]
            if not rows.do_sample:
                assert verdict.next_token[row] == best[row, n]
                matches = candidates.ids[row] == best[row, :k]
                assert [code == M for code in codes[:n]] == matches[:n].tolist()
            for i in [i for i in range(n) if codes[i] == R]:
                assert judged[row, i]
                assert candidates.forbidden is None or not candidates.forbidden[row, i]
                assert candidates.stop is None or options["rescue_stop_tokens"] or not candidates.stop[row, i]
                assert rows.hidden is None or rows.hidden[row, i + 1].isfinite().all()
            fraction = options["max_rescue_fraction"]
            if fraction is not None:
                already = 0 if candidates.n_rescued is None else int(candidates.n_rescued[row])
                length = 0 if candidates.n_generated is None else int(candidates.n_generated[row])
                for i in range(n):
                    already += codes[i] == R
                    assert codes[i] == M or already <= fraction * (length + i + 1) + 1e-5

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(rounds())
    def test_a_window_takes_back_just_the_rescues_before_a_correction(self, round_):
        candidates, rows, judged, options = round_
        rows, window = rows._replace(do_sample=False), options["rescue_window"]
        bare = decide(candidates, rows, judged, **options | {"rescue_window": 0})
        verdict = decide(candidates, rows, judged, **options)
        for row, codes in enumerate(bare.codes.tolist()):
            end = int(bare.n_accepted[row])
            corrected = codes[end] == C
            for i in [i for i in range(end - 1, -1, -1) if codes[i] == R]:
                if not corrected or end - i > window:
                    break
                end = i
            assert verdict.n_accepted[row] == end

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(rounds())
    def test_batching_changes_nothing(self, round_):
        """Greedy: every row of a batch gets the verdict that it gets alone, whatever its padding holds."""
        candidates, rows, judged, options = round_
        rows = rows._replace(do_sample=False)
        together = decide(candidates, rows, judged, **options)
        batch, k = candidates.ids.shape
        for row in range(batch):
            n = k if candidates.lengths is None else int(candidates.lengths[row])

            def cut(tensor, width, row=row):
                return None if tensor is None else tensor[row : row + 1, :width]

            alone = decide(
                Candidates(
                    ids=cut(candidates.ids, n),
                    forbidden=cut(candidates.forbidden, n),
                    stop=cut(candidates.stop, n),
                    n_generated=None if candidates.n_generated is None else candidates.n_generated[row : row + 1],
                    n_rescued=None if candidates.n_rescued is None else candidates.n_rescued[row : row + 1],
                ),
                TargetOutputs(cut(rows.logits, n + 1), cut(rows.scores, n + 1), cut(rows.hidden, n + 1)),
                cut(judged, n),
                **options,
            )
            assert alone.n_accepted.item() == together.n_accepted[row]
            assert alone.next_token.item() == together.next_token[row]
            assert alone.codes[0].tolist() == together.codes[row, : n + 1].tolist()
            assert alone.n_refused.item() == together.n_refused[row]
            assert alone.n_non_finite.item() == together.n_non_finite[row]

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(rounds(), st.floats(0, 1), st.floats(0, 1))
    def test_a_lower_threshold_accepts_no_less(self, round_, one, other):
        candidates, rows, _, _ = round_
        rows = rows._replace(do_sample=False, hidden=torch.randn(*rows.scores.shape[:2], 5))
        head = random_head(width=5)
        lenient, strict = (JudgeCandidateVerifier(head, t).verify(candidates, rows) for t in sorted([one, other]))
        assert (lenient.n_accepted >= strict.n_accepted).all()
        assert (strict.n_accepted >= StrictVerifier().verify(candidates, rows).n_accepted).all()


# --------------------------------------------------------------------------------------------------------------------
# Distributions: batches of independent rounds, one token of each compared with the law that the rule promises.

N_ROUNDS = 200_000
TARGET_PROBABILITIES = torch.tensor([0.35, 0.25, 0.2, 0.1, 0.07, 0.03])
DRAFT_PROBABILITIES = torch.tensor([0.05, 0.45, 0.1, 0.3, 0.02, 0.08])


def assert_distribution(tokens: torch.Tensor, probabilities: torch.Tensor):
    """Pearson's chi-square; wrong with probability FALSE_ALARM. Over 200,000 draws a shift of 0.01 would be seen."""
    possible = probabilities > 0
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert counts[~possible].sum() == 0  # an impossible token never comes
    expected = probabilities[possible].double() * len(tokens)
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum().double() - 1
    assert freedom == 0 or float(torch.special.gammaincc(freedom / 2, statistic / 2)) > FALSE_ALARM


def sampled_rounds(k: int, *, with_logits: bool, seed: int) -> tuple[Candidates, TargetOutputs]:
    """N_ROUNDS rounds whose drafts come from the draft's law, or else from an arbitrary fixed token per position."""
    generator = torch.Generator().manual_seed(seed)
    scores = TARGET_PROBABILITIES.log().expand(N_ROUNDS, k + 1, -1)
    if with_logits:
        ids = torch.multinomial(DRAFT_PROBABILITIES.expand(N_ROUNDS, -1), k, replacement=True, generator=generator)
        logits = DRAFT_PROBABILITIES.log().expand(N_ROUNDS, k, -1)
    else:
        ids, logits = torch.tensor([[1, 4, 0]])[:, :k].expand(N_ROUNDS, -1), None
    torch.manual_seed(seed)
    return Candidates(ids, logits=logits), TargetOutputs(scores, scores, do_sample=True)


def token_at(candidates: Candidates, verdict, position: int) -> torch.Tensor:
    """The answer's token at a position of the block, of the rounds that reach it."""
    reached = verdict.n_accepted >= position
    n_accepted, token = verdict.n_accepted[reached], verdict.next_token[reached]
    if position == candidates.ids.shape[1]:
        return token
    return torch.where(n_accepted > position, candidates.ids[reached, position], token)


class TestDistributions:
    @pytest.mark.parametrize("with_logits", [True, False])
    def test_strict_keeps_the_targets(self, with_logits):
        """At every position of the block, given that the block reaches it (2211.17192, appendix A.1)."""
        candidates, rows = sampled_rounds(3, with_logits=with_logits, seed=1)
        verdict = decide(candidates, rows)
        for position in range(3 if with_logits else 4):
            tokens = token_at(candidates, verdict, position)
            assert len(tokens) > 1000
            assert_distribution(tokens, TARGET_PROBABILITIES)
        assert 0 < verdict.n_accepted.float().mean() < 3

    def test_bonus_of_a_whole_draft_is_the_targets(self):
        candidates, rows = sampled_rounds(2, with_logits=True, seed=2)
        verdict = decide(candidates, rows)
        assert_distribution(verdict.next_token[verdict.n_accepted == 2], TARGET_PROBABILITIES)

    def test_acceptance_rate(self):
        """Accepted with probability sum(min(p, q)) under draft logits, p(x) without."""
        candidates, rows = sampled_rounds(1, with_logits=True, seed=3)
        accepted = decide(candidates, rows).n_accepted
        overlap = torch.minimum(TARGET_PROBABILITIES, DRAFT_PROBABILITIES).sum()
        assert_distribution(accepted, torch.stack([1 - overlap, overlap]))
        candidates, rows = sampled_rounds(1, with_logits=False, seed=3)
        p = TARGET_PROBABILITIES[1]
        assert_distribution(decide(candidates, rows).n_accepted, torch.stack([1 - p, p]))

    @pytest.mark.parametrize("likes", [[], [3], [1, 5], [0, 1, 2, 3, 4, 5]])
    def test_judged_with_draft_logits(self, likes):
        """P(y) = q(y) [min(1, p/q) or judged] + P(rejected) residual(y)."""
        candidates, rows = sampled_rounds(1, with_logits=True, seed=4)
        p, q = TARGET_PROBABILITIES, DRAFT_PROBABILITIES
        judged = torch.isin(candidates.ids, torch.tensor(likes, dtype=torch.long))
        liked = torch.isin(torch.arange(6), torch.tensor(likes, dtype=torch.long))
        accepted = q * torch.where(liked, torch.ones(6), torch.minimum(torch.ones(6), p / q))
        residual = (p - q).clamp(min=0) / (p - q).clamp(min=0).sum()
        verdict = decide(candidates, rows, judged)
        assert_distribution(token_at(candidates, verdict, 0), accepted + (1 - accepted.sum()) * residual)
        codes = verdict.codes[:, 0].long()
        matched = (q * torch.minimum(torch.ones(6), p / q)).sum()
        law = torch.stack([matched, accepted.sum() - matched, 1 - accepted.sum()]).clamp(min=0)
        law[law < 1e-7] = 0
        assert_distribution(codes, law)

    @pytest.mark.parametrize("liked", [True, False])
    def test_judged_without_draft_logits(self, liked):
        """A fixed draft x: kept where the target draws it or the judge likes it, else what the target drew."""
        candidates, rows = sampled_rounds(1, with_logits=False, seed=5)
        verdict = decide(candidates, rows, torch.full_like(candidates.ids, liked, dtype=torch.bool))
        law = torch.nn.functional.one_hot(torch.tensor(1), 6).float() if liked else TARGET_PROBABILITIES
        assert_distribution(token_at(candidates, verdict, 0), law)
        p = TARGET_PROBABILITIES[1]
        zero = torch.tensor(0.0)
        law = torch.stack([p, 1 - p, zero]) if liked else torch.stack([p, zero, 1 - p])
        assert_distribution(verdict.codes[:, 0].long(), law)

    def test_after_a_rescue_the_next_token_is_the_targets(self):
        candidates, rows = sampled_rounds(2, with_logits=True, seed=6)
        verdict = decide(candidates, rows, yes([1, 0]).expand(N_ROUNDS, 2))
        assert (verdict.n_accepted >= 1).all()
        assert_distribution(token_at(candidates, verdict, 1), TARGET_PROBABILITIES)

    def test_ragged_rounds_keep_the_targets(self):
        """A padded position is no rejection: its row draws from p, not from a residual."""
        candidates, rows = sampled_rounds(3, with_logits=True, seed=7)
        lengths = torch.arange(N_ROUNDS) % 4
        verdict = decide(candidates._replace(lengths=lengths), rows)
        for length in (0, 1):
            of_length = lengths == length
            whole = of_length & (verdict.n_accepted == length)
            assert_distribution(verdict.next_token[whole], TARGET_PROBABILITIES)

    def test_tokens_that_the_target_rules_out_never_pass(self):
        candidates, rows = sampled_rounds(1, with_logits=True, seed=8)
        scores = rows.scores.clone()
        scores[..., [1, 3]] = -float("inf")
        p = TARGET_PROBABILITIES.clone()
        p[[1, 3]] = 0
        verdict = decide(candidates, rows._replace(scores=scores))
        assert_distribution(token_at(candidates, verdict, 0), p / p.sum())

    def test_equal_distributions_accept_everything(self):
        candidates, rows = sampled_rounds(2, with_logits=True, seed=9)
        verdict = decide(candidates._replace(logits=rows.scores[:, :2]), rows)
        assert (verdict.n_accepted == 2).all()

    def test_rejection_with_equal_distributions_falls_back_to_the_targets(self):
        """An empty residual (p = q to rounding) must not crash or return a fixed token."""
        candidates, rows = sampled_rounds(1, with_logits=True, seed=10)
        candidates = candidates._replace(logits=rows.scores[:, :1])
        choice = strict_choice(candidates, rows)
        tokens = next_token(candidates, rows, torch.zeros(N_ROUNDS, dtype=torch.long), choice)
        assert_distribution(tokens, TARGET_PROBABILITIES)
