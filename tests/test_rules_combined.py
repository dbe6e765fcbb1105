"""Rules combined by AND and OR, rules in one phase of the answer, and both on the command line."""

from __future__ import annotations

import math

import measured_pair
import pytest
import torch
from test_rules import B, C, M, P, R, autojudge, generate, head, logs, pair, prompt  # noqa: F401

from hf_judge import JudgeConfig, JudgeHead, StrictVerifier
from hf_judge.evaluation.given_text import read_text, walk
from hf_judge.rules import (
    BlockVerifier,
    CombinedVerifier,
    FlyVerifier,
    FuzzyVerifier,
    KLVerifier,
    RandomVerifier,
    ThinkingVerifier,
    TopKVerifier,
    TypicalVerifier,
)
from hf_judge.rules.by_name import RULES, Setting, make_verifier, parse_settings
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import Candidates, TargetOutputs

OPEN, CLOSE = 40, 41


def judge_of_first_dimension() -> JudgeCandidateVerifier:
    """A judge that accepts where the first number of the state is positive."""
    made = JudgeHead(JudgeConfig(hidden_size=4))
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        made.bias.zero_()
    return JudgeCandidateVerifier(made.requires_grad_(False), 0.5)


class TestCombined:
    """Four drafted tokens, all but the third rejected by strict verification."""

    SCORES = logs(*[[0.4, 0.35, 0.2, 0.05]] * 5)

    def accepted(self, rule, ids=(1, 1, 0, 2), states=(1.0, -1.0, -1.0, 1.0)) -> list[bool]:
        hidden = torch.zeros(1, 5, 4)
        hidden[0, 1:, 0] = torch.tensor(states)
        found = []
        for place in range(4):  # each position for itself: a round stops at the first rejection
            outputs = TargetOutputs(*[self.SCORES[:, place : place + 2]] * 2, hidden[:, place : place + 2])
            found.append(rule.verify(Candidates(torch.tensor([[ids[place]]])), outputs).n_accepted.item() == 1)
        return found

    def test_all_and_any(self):
        judge, two = judge_of_first_dimension(), TopKVerifier(2)
        assert self.accepted(judge) == [True, False, True, True]
        assert self.accepted(two) == [True, True, True, False]
        assert self.accepted(CombinedVerifier((judge, two))) == [True, False, True, False]
        assert self.accepted(CombinedVerifier((judge, two), "any")) == [True, True, True, True]
        nested = CombinedVerifier((CombinedVerifier((judge, two), "any"), TopKVerifier(3)))
        assert self.accepted(nested) == [True] * 4

    def test_judge_and_window_and_gate(self):
        judge, hidden = judge_of_first_dimension(), torch.zeros(1, 4, 4)
        hidden[0, 1, 0] = 1.0
        scores = logs([0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05])
        outputs = TargetOutputs(scores, scores, hidden)

        def codes(rule, *ids):
            return rule.verify(Candidates(torch.tensor([ids])), outputs).codes[0].tolist()

        window = CombinedVerifier((judge, FlyVerifier(0.0, window=3)))
        assert codes(window, 1, 0, 0) == [R, M, M, B]
        assert codes(window, 1, 0, 2) == [C, P, P, P]  # the judge accepts, but a mismatch follows in the window
        entropy = -sum(p * math.log(p) for p in (0.4, 0.35, 0.25)) / math.log(3)
        for bound, first in ((entropy - 0.01, R), (entropy + 0.01, C)):
            assert codes(CombinedVerifier((judge, FlyVerifier(bound, window=1))), 1, 0, 0)[0] == first

    def test_what_it_reads(self):
        judge = judge_of_first_dimension()
        assert CombinedVerifier((judge, TopKVerifier(2))).hidden_state == "post_norm"
        assert CombinedVerifier((TypicalVerifier(), TopKVerifier(2))).hidden_state is None
        assert not CombinedVerifier((judge, TopKVerifier(2))).reads_draft_logits
        assert CombinedVerifier((judge, FuzzyVerifier())).reads_draft_logits

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (lambda: CombinedVerifier((TopKVerifier(2),)), ValueError, "two or more rules, got 1"),
            (lambda: CombinedVerifier((TopKVerifier(2), KLVerifier()), "and"), ValueError, "'all' or 'any', got 'and'"),
            (
                lambda: CombinedVerifier((TopKVerifier(2), BlockVerifier())),
                TypeError,
                "BlockVerifier cannot be combined",
            ),
            (lambda: CombinedVerifier((TopKVerifier(2), StrictVerifier())), TypeError, "StrictVerifier cannot be"),
            (lambda: CombinedVerifier((TopKVerifier(2), "judge")), TypeError, "str cannot be combined"),
        ],
    )
    def test_bad_combinations(self, make, error, match):
        with pytest.raises(error, match=match):
            make()

    def test_generate_checks_every_head(self, pair):  # noqa: F811
        """A head of another width is refused wherever it stands."""
        judge = judge_of_first_dimension()
        for rule in (CombinedVerifier((judge, TopKVerifier(2))), ThinkingVerifier(judge, OPEN, CLOSE)):
            with pytest.raises(ValueError, match="head expects hidden size 4, target has 32"):
                generate(pair, judge=rule)

    def test_two_hidden_states(self):
        other = JudgeHead(JudgeConfig(hidden_size=4, hidden_state="pre_norm")).requires_grad_(False)
        with pytest.raises(ValueError, match="different hidden states, post_norm and pre_norm"):
            CombinedVerifier((judge_of_first_dimension(), JudgeCandidateVerifier(other, 0.5)))

    @pytest.mark.parametrize("do_sample", [False, True])
    @pytest.mark.parametrize(
        "name", [name for name in RULES if name not in ("strict", "block") and not RULES[name].needs_head]
    )
    def test_every_rule_combines(self, name, do_sample):
        """With a rule that accepts all, AND is the rule; with one that accepts nothing, OR is."""
        rule = make_verifier(Setting(name, RULES[name].quick[0]), {})
        torch.manual_seed(0)
        scores = torch.randn(40, 7, 12) * 2
        candidates = Candidates(torch.randint(0, 12, (40, 6)), logits=torch.randn(40, 6, 12))
        outputs, found = TargetOutputs(scores, scores, do_sample=do_sample), []
        nothing, everything = RandomVerifier(0.0), RandomVerifier(1.0)
        for combined in (CombinedVerifier((rule, everything)), CombinedVerifier((nothing, rule), "any")):
            torch.manual_seed(1)
            found.append(combined.verify(candidates, outputs))
        assert found[0].codes.equal(found[1].codes)
        assert do_sample or found[0].n_accepted.equal(rule.verify(candidates, outputs).n_accepted) or name == "ensemble"


class TestThinking:
    SCORES = logs(*[[0.5, 0.4, 0.1] + [0.0] * 39] * 4)

    def codes(self, rule, text, ids, **more):
        texts = (torch.tensor([text]),)
        candidates = Candidates(torch.tensor([ids]), texts=texts, **more)
        verdict = rule.verify(candidates, TargetOutputs(self.SCORES, self.SCORES))
        return verdict.codes[0].tolist()

    def test_inside_and_outside(self):
        inside = ThinkingVerifier(TopKVerifier(2), OPEN, CLOSE)
        outside = ThinkingVerifier(TopKVerifier(2), OPEN, CLOSE, inside=False)
        for text, thinks in (
            ([5, 6], False),
            ([5, OPEN, 6], True),
            ([OPEN, 5, CLOSE, 6], False),
            ([OPEN, CLOSE, OPEN], True),
        ):
            assert self.codes(inside, text, [1, 1, 2]) == ([R, R, C, P] if thinks else [C, P, P, P])
            assert self.codes(outside, text, [1, 1, 2]) == ([C, P, P, P] if thinks else [R, R, C, P])

    def test_the_markers_are_the_targets(self):
        lenient = ThinkingVerifier(RandomVerifier(1.0), OPEN, CLOSE)
        assert self.codes(lenient, [OPEN], [1, CLOSE, 1]) == [R, B, P, P]
        assert self.codes(lenient, [OPEN], [CLOSE, 1, 1]) == [B, P, P, P]
        assert self.codes(lenient, [OPEN], [1, 1, 1], lengths=torch.tensor([2])) == [R, R, B, P]

    def test_a_batch_of_both(self):
        scores = self.SCORES.expand(2, -1, -1)
        texts = (torch.tensor([[OPEN, 5]]), torch.tensor([[5, 5]]))
        candidates = Candidates(torch.ones(2, 3, dtype=torch.long), texts=texts)
        rule = ThinkingVerifier(TopKVerifier(2), OPEN, CLOSE)
        assert rule.verify(candidates, TargetOutputs(scores, scores)).n_accepted.tolist() == [3, 0]

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="must be two tokens, got 4 for both"):
            ThinkingVerifier(TopKVerifier(2), 4, 4)
        with pytest.raises(TypeError, match="open_id must be a whole number"):
            ThinkingVerifier(TopKVerifier(2), "<think>", 4)
        rule, scores = ThinkingVerifier(TopKVerifier(2), OPEN, CLOSE), self.SCORES
        with pytest.raises(ValueError, match="needs the text before each round"):
            rule.verify(Candidates(torch.tensor([[1, 1, 1]])), TargetOutputs(scores, scores))

    def test_through_generate(self, pair):  # noqa: F811
        """Without a thought all is strict; a prompt that opens one gives the rule's tokens until it is closed."""
        target, draft = pair
        options = {"assistant_model": draft, "max_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True}
        options |= {"num_assistant_tokens": 6, "num_assistant_tokens_schedule": "constant"}

        def answer(opened: list[int], rule) -> tuple[list[int], list[int]]:
            text = torch.cat([prompt(0), torch.tensor([opened], dtype=torch.long)], dim=1)
            output = target.generate(text, judge=rule, **options)
            return output.sequences[0, text.shape[1] :].tolist(), output.verdicts[0].tolist()

        rule, strict = RandomVerifier(0.8), answer([], StrictVerifier())
        used = {*prompt(0)[0].tolist(), *strict[0]}
        opening = next(t for t in range(4, 48) if t not in {*used, *answer([t], rule)[0]})
        tokens, codes = answer([opening], rule)
        place = next(i for i in range(8, 30) if codes[i] != R and tokens[i] not in {*used, *tokens[:i]})
        closing = tokens[place]  # the target's own token: the thought ends there
        assert answer([], ThinkingVerifier(rule, opening, closing)) == strict
        assert answer([], ThinkingVerifier(rule, opening, closing, inside=False))[1].count(R) > 0
        thought, verdicts = answer([opening], ThinkingVerifier(rule, opening, closing))
        assert thought[: place + 1] == tokens[: place + 1]
        assert R in verdicts[:place]
        assert R not in verdicts[place:]
        assert R in codes[place:]

    def test_a_batch_through_generate(self, pair):  # noqa: F811
        """Each prompt of a batch has the tokens that it has alone."""
        target, draft = pair
        texts = [torch.cat([prompt(seed), torch.tensor([[OPEN if seed else 9]])], dim=1) for seed in range(3)]
        options = {"assistant_model": draft, "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        options |= {"num_assistant_tokens": 5, "num_assistant_tokens_schedule": "constant"}
        options["judge"] = ThinkingVerifier(TopKVerifier(3), OPEN, CLOSE)
        together = target.generate(torch.cat(texts), **options)
        for row, text in zip(together, texts, strict=True):
            alone = target.generate(text, **options)[0]
            assert row[: len(alone)].equal(alone)


def test_given_text_is_walked_in_phases():
    """A text that the target did not write: strict up to the marker, which is the text's own, lenient after it."""
    measured = measured_pair.pair()
    prompt_ids = measured.encode("Hello")
    written = measured.target.generate(prompt_ids, judge=False, max_new_tokens=6, do_sample=False)[
        0, prompt_ids.shape[1] :
    ]
    written = torch.cat([written, torch.tensor([5, 60, 5, 60])]).unsqueeze(0)
    marker = int(written[0, 3])
    assert written[0].tolist().count(marker) == 1
    text = read_text(measured, prompt_ids, written)
    codes = walk(ThinkingVerifier(RandomVerifier(1.0), marker, 3), text)
    assert codes[:6] == [M] * 6  # the marker is the target's own, so it is no rejection
    assert C not in codes[6:]
    assert C in walk(ThinkingVerifier(RandomVerifier(1.0), 61, 3), text)[6:]


class TestNames:
    HEADS = {"judge": head(), "judge:b": head(bias=1.0)}

    def test_words(self):
        settings = parse_settings(["judge=0.5&fly=0.1,0.2", "kl=2|top-k=2", "thinking/40/41/judge=0.5"], self.HEADS)
        assert [s.name for s in settings] == [
            "plain", "judge=0.5&fly=0.1", "judge=0.5&fly=0.2", "kl=2|top-k=2", "thinking/40/41/judge=0.5",
        ]  # fmt: skip
        assert [s.number for s in settings] == ["", "threshold", "threshold", "k", "threshold"]
        assert settings[1].heads == ["judge", "fly"]
        combined = make_verifier(settings[2], self.HEADS)
        assert (combined.how, combined.rules[0].threshold, combined.rules[1].threshold) == ("all", 0.5, 0.2)
        assert make_verifier(settings[3], {}).how == "any"
        thinking = make_verifier(settings[4], self.HEADS)
        assert (thinking.open_id, thinking.close_id, thinking.inside) == (40, 41, True)
        both = make_verifier(Setting("answer/4/5/judge:b=0.5|kl=1&top-k", 3.0), self.HEADS)
        assert not both.inside
        assert (both.rule.how, both.rule.rules[0].how, both.rule.rules[1].k) == ("all", "any", 3)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("judge=0.5&nonsense", "no rule 'nonsense'"),
            ("kl&fly=0.1", "kl needs a value here, as in 'kl=4'"),
            ("judge:x=0.5&fly=0.1", "rule 'judge:x' needs its head"),
            ("strict&fly=0.1", "StrictVerifier cannot be combined"),
            ("thinking/4/4/kl=2", "must be two tokens"),
            ("thinking/4/kl=2", "no rule 'thinking/4/kl'"),
            ("kl=a&fly=0.1", "expected numbers after '='"),
            ("&fly=0.1", "no rule ''"),
            ("kl=1&", "no rule ''"),
        ],
    )
    def test_bad_words(self, text, match):
        with pytest.raises(ValueError, match=match):
            parse_settings([text], self.HEADS)
