"""Other people's acceptance rules under the judge's protocol, each as its paper states it, and a control.

Every rule is a pure function over one round and a verifier that holds its settings, for ``generate(judge=...)``. p is
the target's distribution, softmax(rows.scores), q the draft's, x a drafted token. What `decide` guarantees holds for
all of them: hard constraints, stop tokens, values that are not finite. Knows nothing about models, caches or loops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hf_judge.config import check_threshold
from hf_judge.distributions import at, entropy, kl_divergence
from hf_judge.head import JudgeHead
from hf_judge.stats import JudgeStats
from hf_judge.verify import (
    Candidates,
    Rows,
    StrictChoice,
    Verdict,
    decide,
    head_features,
    reads_draft_logits,
    strict_choice,
)


def top_k_accepts(scores: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """Accept x where fewer than k tokens are more probable: ``#{v: p(v) > p(x)} < k``.

    The baseline of Judge Decoding (2501.19309) and AutoJudge (2504.20039).

    Args:
        scores: (batch, n, V) float, the target's scores of the rows that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        k: how many of the target's best tokens pass.

    Returns:
        (batch, n) bool.
    """
    return (scores > at(scores, ids).unsqueeze(-1)).sum(dim=-1) < k


def relaxed_accepts(scores: torch.Tensor, ids: torch.Tensor, n: int, delta: float) -> torch.Tensor:
    """Accept x where it is among the target's n best and ``p(x) > max p - delta``.

    Relaxed acceptance of TensorRT-LLM (`use_relaxed_acceptance_for_thinking`), there limited to the thinking phase.

    Args:
        scores, ids: as in [`top_k_accepts`].
        n: how many of the target's best tokens pass.
        delta: how much less probable than the best one.

    Returns:
        (batch, n) bool.
    """
    probabilities = scores.softmax(dim=-1)
    return top_k_accepts(scores, ids, n) & (at(probabilities, ids) > probabilities.amax(dim=-1) - delta)


def typical_accepts(scores: torch.Tensor, ids: torch.Tensor, epsilon: float, delta: float) -> torch.Tensor:
    """Accept x where ``p(x) > min(epsilon, delta * exp(-H(p)))``, H the entropy in nats.

    Typical acceptance, Medusa (2401.10774, section 2.3.1).

    Args:
        scores, ids: as in [`top_k_accepts`].
        epsilon: the hard threshold.
        delta: the entropy-dependent threshold's factor.

    Returns:
        (batch, n) bool.
    """
    probabilities = scores.softmax(dim=-1)
    return at(probabilities, ids) > (delta * torch.exp(-entropy(scores))).clamp(max=epsilon)


def kl_accepts(
    scores: torch.Tensor, draft_scores: torch.Tensor, threshold: float, max_confidence: float
) -> torch.Tensor:
    """Accept where ``KL(p || q) < threshold`` and ``max p <= max_confidence``.

    The KL gate of "Revisiting Judge Decoding" (2601.04766), p before q: the target's own distribution weighs the
    differences. x itself does not matter.

    Args:
        scores: (batch, n, V) float, the target's.
        draft_scores: (batch, n, V) float, the draft's.
        threshold: in nats.
        max_confidence: where the target is surer than this, verification is strict.

    Returns:
        (batch, n) bool.
    """
    return (kl_divergence(scores, draft_scores) < threshold) & (scores.softmax(dim=-1).amax(dim=-1) <= max_confidence)


def fly_accepts(
    matched: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, threshold: float, window: int
) -> torch.Tensor:
    """Accept a mismatch where the target was unsure and then agrees: ``H(p) / log V >= threshold`` and the next
    `window` - 1 drafted tokens all match.

    FLy's entropy gate and deferred window (2511.22972). The last `window` - 1 tokens of a draft have no window to wait
    for and stay strict; of two mismatches within a window both are rejected.

    Args:
        matched: (batch, n) bool, where strict verification accepts.
        scores: (batch, n, V) float, the target's.
        lengths: (batch,) long, drafted tokens per row.
        threshold: on the normalised entropy, 0 to 1.
        window: W, the mismatch included.

    Returns:
        (batch, n) bool.
    """
    n = matched.shape[1]
    position = torch.arange(n, device=matched.device)
    inside = matched & (position < lengths.unsqueeze(1))
    total = torch.nn.functional.pad(inside.long().cumsum(dim=1), (1, window))
    total[:, n + 1 :] = total[:, n : n + 1]
    following = total[:, window : n + window] - total[:, 1 : n + 1]  # matches among the window - 1 tokens behind
    return (entropy(scores) >= threshold * math.log(scores.shape[-1])) & (following == window - 1)


def ensemble_tokens(scores: torch.Tensor, draft_scores: torch.Tensor, weight: float) -> torch.Tensor:
    """The best token of the mixture: ``argmax(w p + (1 - w) q)``.

    Greedy static ensemble of DIVERSE (2604.07622); tokens that the target rules out (-inf) stay out.

    Args:
        scores: (batch, n, V) float, the target's.
        draft_scores: (batch, n, V) float, the draft's.
        weight: w.

    Returns:
        (batch, n) long.
    """
    mixture = weight * scores.softmax(dim=-1) + (1.0 - weight) * draft_scores.softmax(dim=-1)
    return mixture.masked_fill(scores <= torch.finfo(scores.dtype).min, -1.0).argmax(dim=-1)


def ensemble_accepts(
    scores: torch.Tensor, draft_scores: torch.Tensor, ids: torch.Tensor, draws: torch.Tensor, weight: float
) -> torch.Tensor:
    """Accept x where ``u <= 1 - w + w p(x) / q(x)``.

    Sampling with DIVERSE's static ensemble (2604.07622): speculative sampling from v = w p + (1 - w) q. Its residual
    norm(max(v - q, 0)) is that of p, so the next token is drawn as strict verification draws it.

    Args:
        scores, draft_scores: as in [`ensemble_tokens`].
        ids: (batch, n) long, the drafted tokens.
        draws: (batch, n) float, u.
        weight: w.

    Returns:
        (batch, n) bool.
    """
    target, draft = (at(s.softmax(dim=-1), ids) for s in (scores, draft_scores))
    return draws * draft <= (1.0 - weight) * draft + weight * target


def thresholds_accept(
    scores: torch.Tensor, ids: torch.Tensor, draws: torch.Tensor | None, single: float, accumulated: float
) -> torch.Tensor:
    """Accept x where ``p(x) >= single`` or ``u <= p(x) / accumulated``.

    SGLang's `speculative_accept_threshold_single` and `_acc`, its target-only sampling for one candidate per position.

    Args:
        scores, ids: as in [`top_k_accepts`].
        draws: (batch, n) float, u; None: no random part.
        single: above 1 it accepts nothing.
        accumulated: 1 is lossless.

    Returns:
        (batch, n) bool.
    """
    target = at(scores.softmax(dim=-1), ids)
    accepted = target >= single
    return accepted if draws is None else accepted | (draws * max(accumulated, 1e-9) <= target)


def autojudge_accepts(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Accept where ``P(important) < threshold``, P(important) = 1 - sigmoid(logit).

    AutoJudge (2504.20039), whose classifier finds the mismatches that matter.

    Args:
        logits: (batch, n) float, of a head whose positive class is "acceptable", as all heads of this package.
        threshold: on P(important).

    Returns:
        (batch, n) bool, False where the logit is not a number.
    """
    return (-logits).sigmoid() < threshold


def random_accepts(ids: torch.Tensor, first_position: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Accept at a rate, whatever the token is: the control that every rule must beat.

    u is a hash (splitmix64) of seed, position in the answer and token, so that a call repeats itself.

    Args:
        ids: (batch, n) long.
        first_position: (batch,) long, position of the first drafted token in the answer.
        rate: 0 to 1.
        seed: any integer.

    Returns:
        (batch, n) bool.
    """
    position = first_position.unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device)
    state = _mix(_mix(position + 0x1234567 * (seed + 1)) + ids)
    return (state & ((1 << 53) - 1)).double() / (1 << 53) < rate


@dataclass(eq=False)
class _Rule:
    """A rule that adds to strict verification: "strict accepts OR the rule accepts"."""

    rescue_stop_tokens: bool = field(default=False, kw_only=True)
    max_rescue_fraction: float | None = field(default=None, kw_only=True)

    hidden_state = None  # no annotation: the state that `verify` needs is no setting

    def __post_init__(self):
        if self.max_rescue_fraction is not None:
            _check("max_rescue_fraction", self.max_rescue_fraction, 0, 1)
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, rows: Rows) -> Verdict:
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, rows)
        return self._decide(candidates, rows, choice, self.judged(candidates, rows, choice))

    def judged(self, candidates: Candidates, rows: Rows, choice: StrictChoice) -> torch.Tensor:
        """(batch, k) bool, where the rule itself accepts."""
        raise NotImplementedError

    def _decide(self, candidates, rows, choice, judged, **how) -> Verdict:
        return decide(
            candidates,
            rows,
            judged,
            choice=choice,
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
            **how,
        )


@dataclass(eq=False)
class TopKVerifier(_Rule):
    """Accepts the target's k best tokens, see [`top_k_accepts`]. Strict verification is k = 1."""

    k: int = 2

    def __post_init__(self):
        super().__post_init__()
        _check("k", self.k, 1, kind=int)

    def judged(self, candidates, rows, choice):
        return top_k_accepts(_drafted(rows), candidates.ids, self.k)


@dataclass(eq=False)
class RelaxedVerifier(_Rule):
    """Accepts the target's n best tokens within delta of the best one, see [`relaxed_accepts`]."""

    delta: float = 0.5
    n: int = 15

    def __post_init__(self):
        super().__post_init__()
        _check("delta", self.delta, 0, 1)
        _check("n", self.n, 1, kind=int)

    def judged(self, candidates, rows, choice):
        return relaxed_accepts(_drafted(rows), candidates.ids, self.n, self.delta)


@dataclass(eq=False)
class TypicalVerifier(_Rule):
    """Accepts what is typical of the target, see [`typical_accepts`].

    Sampling: on a rejection the next token is drawn from p, as Medusa does. Greedy: p is the distribution at
    temperature 1 (Medusa's own greedy mode is strict verification). Medusa's unconditional first token is the target's
    own here, which ends every round.

    Args:
        epsilon: 0.09 in Medusa.
        delta: 0.3 in Medusa; None: sqrt(epsilon), the paper's advice.
    """

    epsilon: float = 0.09
    delta: float | None = None

    def __post_init__(self):
        super().__post_init__()
        _check("epsilon", self.epsilon, 0, 1)
        if self.delta is None:
            self.delta = math.sqrt(self.epsilon)
        _check("delta", self.delta, 0)

    def verify(self, candidates, rows):
        """See [`CandidateVerifier`]."""
        candidates = candidates._replace(logits=None)  # q plays no part, in the next token neither
        choice = strict_choice(candidates, rows)
        judged = typical_accepts(_drafted(rows), candidates.ids, self.epsilon, self.delta)
        return self._decide(candidates, rows, choice, judged, alone=rows.do_sample)


@dataclass(eq=False)
class KLVerifier(_Rule):
    """Accepts where draft and target are close, see [`kl_accepts`].

    Args:
        threshold: in nats.
        max_confidence: 0.9 in the paper.
    """

    threshold: float = 0.5
    max_confidence: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        _check("threshold", self.threshold, 0)
        _check("max_confidence", self.max_confidence, 0, 1)

    def judged(self, candidates, rows, choice):
        draft_scores = _draft_scores(candidates, rows, "KLVerifier")
        return kl_accepts(_drafted(rows), draft_scores, self.threshold, self.max_confidence)


@dataclass(eq=False)
class EnsembleVerifier(_Rule):
    """Verifies against the mixture ``w p + (1 - w) q``; the same tokens as upstream's `assistant_ensemble_weight`.

    It is a distribution of its own: greedily a rejected token is replaced by the mixture's, and the mixture may end the
    answer, hence `rescue_stop_tokens` is on.

    Args:
        weight: between 0 (accept everything) and 1 (strict verification).
    """

    weight: float = 0.5
    rescue_stop_tokens: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _check("weight", self.weight, 0, 1)

    def verify(self, candidates, rows):
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, rows)
        ids, k = candidates.ids, candidates.ids.shape[1]
        draft_scores = _draft_scores(candidates, rows, "EnsembleVerifier")
        if rows.do_sample:
            if k == 0:
                return self._decide(candidates, rows, choice, None)
            judged = ensemble_accepts(_drafted(rows), draft_scores, ids, choice.draws, self.weight)
            return self._decide(candidates, rows, choice, judged)
        tokens = choice.tokens.clone()
        tokens[:, :k] = ensemble_tokens(_drafted(rows), draft_scores, self.weight)
        if candidates.lengths is not None:  # behind a whole draft there is no q: the target's own token
            whole = torch.arange(k + 1, device=ids.device) >= candidates.lengths.unsqueeze(1)
            tokens = torch.where(whole, choice.tokens, tokens)
        return self._decide(candidates, rows, choice, tokens[:, :k] == ids, alone=True, tokens=tokens)


@dataclass(eq=False)
class ThresholdsVerifier(_Rule):
    """SGLang's thresholds, see [`thresholds_accept`]; 1 and 1 are lossless.

    Sampling: a rejected token is replaced by a draw from p without it. Greedy: SGLang ignores both thresholds; here
    `single` holds, and `accumulated`, which is about a random draw, does not.
    """

    single: float = 0.3
    accumulated: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check("single", self.single, 0, 1)
        _check("accumulated", self.accumulated, 0, 1)

    def verify(self, candidates, rows):
        """See [`CandidateVerifier`]."""
        candidates = candidates._replace(logits=None)  # target-only sampling: q plays no part
        choice = strict_choice(candidates, rows)
        single = self.single if self.single < 1 else math.inf  # p(x) rounds to 1 where strict has accepted anyway
        target = at(_drafted(rows).softmax(dim=-1), candidates.ids)
        draws = None
        if rows.do_sample:
            # Strict's draw y = x happened with probability p(x); a further u makes it min(1, p(x) / accumulated) in
            # all, and leaves y, given y != x, as the draw from p without x.
            wanted = (target / max(self.accumulated, 1e-9)).clamp(max=1)
            draws = torch.rand_like(target) * (1 - target) + target
            draws = torch.where(wanted > target, draws, math.inf)
        judged = thresholds_accept(_drafted(rows), candidates.ids, draws, single, self.accumulated)
        return self._decide(candidates, rows, choice, judged)


@dataclass(eq=False)
class FlyVerifier(_Rule):
    """FLy: a mismatch stands where the target was unsure and agrees afterwards, see [`fly_accepts`].

    Args:
        threshold: 0.3 in the paper. window: 6 in the paper.
    """

    threshold: float = 0.3
    window: int = 6

    def __post_init__(self):
        super().__post_init__()
        _check("threshold", self.threshold, 0, 1)
        _check("window", self.window, 1, kind=int)

    def judged(self, candidates, rows, choice):
        lengths = candidates.lengths
        if lengths is None:
            lengths = candidates.ids.new_full(candidates.ids.shape[:1], candidates.ids.shape[1])
        return fly_accepts(choice.accepted, _drafted(rows), lengths, self.threshold, self.window)


class AutoJudgeVerifier(_Rule):
    """AutoJudge on target features (its "DT" form), see [`autojudge_accepts`].

    Args:
        head ([`JudgeHead`]): trained on mined mismatches; `hf_judge.autojudge` imports theirs.
        threshold: on P(important); accepted below it.
    """

    def __init__(
        self,
        head: JudgeHead,
        threshold: float = 0.5,
        *,
        rescue_stop_tokens: bool = False,
        max_rescue_fraction: float | None = None,
    ):
        super().__init__(rescue_stop_tokens=rescue_stop_tokens, max_rescue_fraction=max_rescue_fraction)
        if not isinstance(head, JudgeHead):
            raise TypeError(f"AutoJudgeVerifier expects a JudgeHead, got {type(head).__name__}")
        self.head = head
        self.threshold = check_threshold(threshold)

    @property
    def hidden_state(self) -> str:
        """The state that the head reads."""
        return self.head.config.hidden_state

    @property
    def reads_draft_logits(self) -> bool:
        """Whether the head reads numbers that need the draft's logits."""
        return reads_draft_logits(self.head)

    def judged(self, candidates, rows, choice):
        hidden = rows.hidden
        if self.head.config.hidden_size > hidden.shape[-1]:
            raise ValueError(
                f"this AutoJudge head reads {self.head.config.hidden_size} features, the target's state has "
                f"{hidden.shape[-1]}: it was trained on draft and target states (DD-DT), and the draft's are not at "
                "hand in generate(): train one on target states alone (DT)"
            )
        return autojudge_accepts(self.head(head_features(self.head, candidates, rows)), self.threshold).to(
            candidates.ids.device
        )

    def __repr__(self) -> str:
        return f"AutoJudgeVerifier({self.head!r}, threshold={self.threshold})"


@dataclass(eq=False)
class RandomVerifier(_Rule):
    """Accepts at random at a rate, see [`random_accepts`]: the control."""

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        _check("rate", self.rate, 0, 1)
        _check("seed", self.seed, kind=int)

    def judged(self, candidates, rows, choice):
        first = candidates.n_generated
        if first is None:
            first = candidates.ids.new_zeros(candidates.ids.shape[:1])
        return random_accepts(candidates.ids, first, self.rate, self.seed)


def _drafted(rows: Rows) -> torch.Tensor:
    return rows.scores[:, :-1]


def _draft_scores(candidates: Candidates, rows: Rows, rule: str) -> torch.Tensor:
    if candidates.ids.shape[1] == 0:
        return _drafted(rows)
    if candidates.logits is None:
        raise ValueError(
            f"{rule} compares the target with the draft's distribution, and this source of drafts has none (prompt "
            "lookup and the like): pass assistant_model=, or a rule that needs the target alone"
        )
    if candidates.logits.shape[-1] != rows.scores.shape[-1]:
        raise ValueError(
            f"{rule} needs draft and target over one vocabulary, got {candidates.logits.shape[-1]} and "
            f"{rows.scores.shape[-1]} tokens"
        )
    return candidates.logits.to(rows.scores.device, torch.float32)


def _mix(state: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64, which wraps around; shifts are made logical by masking the sign's copies."""
    state = state + -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return state ^ (state >> 31 & (1 << 33) - 1)


def _check(name: str, value: float, least: float = -math.inf, most: float = math.inf, kind: type = float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r:.60}")
    if not math.isfinite(value) or not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
