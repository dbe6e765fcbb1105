"""The acceptance rules: pure tensor functions over one whole round, and the verifiers that hold their settings.

Knows nothing about models, caches or loops. One round: the draft proposed x_1..x_k after a prefix; one target forward
gave k+1 rows, row 0 for the last token of the prefix and row i for x_i. Row i-1 predicts x_i; row i's hidden state is
the target's reaction to x_i itself. Tensors are 0-based here: drafted token j (0 <= j < k) is predicted by row j and
read by row j+1.

Sources: strict verification, Leviathan et al. 2211.17192 (algorithm 1); the judge, Bachmann et al. 2501.19309
(section 3).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch

from hf_judge.head.config import check_threshold
from hf_judge.head.distributions import DRAFT_FEATURES, extra_features
from hf_judge.head.judge_head import JudgeHead
from hf_judge.verify.stats import JudgeStats, VerdictCode


class Candidates(NamedTuple):
    """What the draft proposed in one round, for every row of the batch."""

    ids: torch.Tensor  # (batch, k) long, drafted tokens, padded on the right
    lengths: torch.Tensor | None = None  # (batch,) long, drafted tokens per row; None: k each
    logits: torch.Tensor | None = None  # (batch, k, V) float, scores the ids were drawn from; None: no random draw
    forbidden: torch.Tensor | None = None  # (batch, k) bool, a hard constraint rules the token out; None: none
    stop: torch.Tensor | None = None  # (batch, k) bool, the token ends the answer; None: none
    n_generated: torch.Tensor | None = None  # (batch,) long, new tokens of the answer before this round; None: 0
    n_rescued: torch.Tensor | None = None  # (batch,) long, how many of those were rescued; None: 0
    raw_logits: torch.Tensor | None = None  # (batch, k, V) float, the draft's own, before processors; None: not known


class Rows(NamedTuple):
    """The target's rows of the round; row 0 belongs to the last token of the prefix, row i to drafted token i."""

    logits: torch.Tensor  # (batch, k+1, V) float32, as the model gave them
    scores: torch.Tensor  # (batch, k+1, V) float32, after the logits processors
    hidden: torch.Tensor | None = None  # (batch, k+1, D), the state that the verifier's `hidden_state` names
    do_sample: bool = False  # the next token is drawn from softmax(scores); else it is their argmax


class Verdict(NamedTuple):
    """What a rule decided about a round."""

    n_accepted: torch.Tensor  # (batch,) long, length of the accepted prefix of the draft
    next_token: torch.Tensor  # (batch,) long, the target's token after that prefix
    codes: torch.Tensor  # (batch, k+1) int8 VerdictCode of the accepted tokens and the next one, then PADDING
    n_refused: torch.Tensor | None = None  # (batch,) long, rescues that a constraint or stop token forbade
    n_non_finite: torch.Tensor | None = None  # (batch,) long, verified tokens with a NaN or infinite state or score


@runtime_checkable
class CandidateVerifier(Protocol):
    """The protocol of every acceptance rule: pass any object that has it as ``generate(judge=...)``.

    `verify` sees one whole round and must not change its arguments. It decides the accepted prefix, the target's next
    token and the codes; [`decide`] turns "strict accepts" and "the rule accepts" into these, keeping hard constraints.
    An optional attribute ``hidden_state`` (``"post_norm"``, ``"pre_norm"`` or ``None`` for no state) says what
    `rows.hidden` must hold; without it the state is ``"post_norm"``. Another one, ``reads_draft_logits``, asks for
    `candidates.raw_logits` where the source of drafts has them; without it nothing is asked for.
    """

    stats: JudgeStats  # sums over every call that this verifier served

    def verify(self, candidates: Candidates, rows: Rows) -> Verdict: ...


class StrictChoice(NamedTuple):
    """The strict rule's own decisions about every position of a round."""

    accepted: torch.Tensor  # (batch, k) bool
    tokens: torch.Tensor | None  # (batch, k+1) long, the target's choice at every row; None: drawn later, on demand
    draws: torch.Tensor | None = None  # (batch, k) float, the u of every decision, where one was drawn


def strict_choice(candidates: Candidates, rows: Rows) -> StrictChoice:
    """What strict verification decides at every position.

    Greedy: accept x where it is the argmax of the target's scores. Sampling from a draft of known distribution q
    (2211.17192, algorithm 1): accept where u <= p(x) / q(x), u uniform in [0, 1). Sampling otherwise: draw y from p and
    accept where y = x, which keeps p for any way of proposing x that is not random.

    Args:
        candidates: the round's draft.
        rows: the target's rows.

    Returns:
        StrictChoice: one decision per drafted token; under sampling with draft logits no tokens are drawn yet.
    """
    k = candidates.ids.shape[1]
    if not rows.do_sample:
        tokens = rows.scores.argmax(dim=-1)
        return StrictChoice(tokens[:, :k] == candidates.ids, tokens)
    target = rows.scores.softmax(dim=-1)
    if candidates.logits is None:
        tokens = torch.multinomial(target.flatten(0, 1), num_samples=1).view(target.shape[:2])
        return StrictChoice(tokens[:, :k] == candidates.ids, tokens)
    at = candidates.ids.unsqueeze(-1)
    target_prob = target[:, :k].gather(-1, at).squeeze(-1)
    draft_prob = candidates.logits.softmax(dim=-1).gather(-1, at).squeeze(-1)
    draws = torch.rand_like(target_prob)
    # u * q <= p instead of u <= p / q: no division by a draft probability that underflowed
    accepted = draws * draft_prob <= target_prob
    # u may be exactly 0, and a token that the target rules out must never pass
    return StrictChoice(accepted & (target_prob > 0), None, draws)


def next_token(candidates: Candidates, rows: Rows, n_accepted: torch.Tensor, choice: StrictChoice) -> torch.Tensor:
    """The target's own token after the accepted prefix.

    Greedy, or sampling without draft logits: the choice already made at that row. Sampling with draft logits: a draw
    from p after a whole draft, else from the residual norm(max(p - q, 0)) (2211.17192, algorithm 1).

    Args:
        n_accepted: (batch,) long.

    Returns:
        (batch,) long.
    """
    if choice.tokens is not None:
        return choice.tokens.gather(1, n_accepted.unsqueeze(1)).squeeze(1)
    vocabulary = rows.scores.shape[-1]
    row = n_accepted.view(-1, 1, 1)
    target = rows.scores.gather(1, row.expand(-1, 1, vocabulary)).squeeze(1).softmax(dim=-1)
    rejected = (n_accepted < _lengths(candidates)).unsqueeze(1)
    if candidates.ids.shape[1] == 0:
        return torch.multinomial(target, num_samples=1).squeeze(1)
    drafted_row = row.clamp(max=candidates.logits.shape[1] - 1).expand(-1, 1, vocabulary)
    draft = candidates.logits.gather(1, drafted_row).squeeze(1).softmax(dim=-1)
    residual = torch.where(rejected, (target - draft).clamp(min=0), target)
    # p and q equal to rounding leave an empty residual; p itself is then the right distribution
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, target)
    return torch.multinomial(residual, num_samples=1).squeeze(1)


def decide(
    candidates: Candidates,
    rows: Rows,
    judged: torch.Tensor | None = None,
    *,
    choice: StrictChoice | None = None,
    alone: bool = False,
    tokens: torch.Tensor | None = None,
    rescue_stop_tokens: bool = False,
    max_rescue_fraction: float | None = None,
) -> Verdict:
    """Turn a rule's opinion into a verdict: accept the longest prefix of "strict accepts OR (judged AND may be
    rescued)", or for a rule that decides alone of "judged AND (strict accepts OR may be rescued)".

    A token may be rescued unless a hard constraint forbids it, it is a stop token (unless allowed), its hidden state or
    score is not finite, or the rescue budget is spent. `rescued` means that strict's own decision rejected the token.

    Args:
        candidates: the round's draft.
        rows: the target's rows.
        judged: (batch, k) bool, where the rule itself accepts; None for strict verification.
        choice: strict's decisions, where the rule has looked at them; None: made here.
        alone: strict verification accepts nothing by itself, it only tells which tokens count as rescued.
        tokens: (batch, k+1) long, the rule's own next token at every row; None: strict's. Where the token was barred
            from being rescued it is strict's too, since the rule may well want what was barred.
        rescue_stop_tokens: whether a stop token may be rescued.
        max_rescue_fraction: at most this share of the answer, at every point of it, comes from rescues.

    Returns:
        Verdict.
    """
    batch, k = candidates.ids.shape
    lengths = _lengths(candidates)
    position = torch.arange(k + 1, device=candidates.ids.device)
    drafted = position[:k] < lengths.unsqueeze(1)  # (batch, k): False on padding
    choice = strict_choice(candidates, rows) if choice is None else choice
    if k == 0:  # a round without a draft: it should cost what plain decoding does
        following = next_token(candidates, rows, lengths, choice) if tokens is None else tokens[:, 0]
        codes = torch.full((batch, 1), VerdictCode.BONUS, dtype=torch.int8, device=candidates.ids.device)
        none = torch.zeros_like(lengths)
        return Verdict(n_accepted=none, next_token=following, codes=codes, n_refused=none, n_non_finite=none)
    finite = _finite(candidates, rows)
    refused = torch.zeros_like(drafted)
    rescued = wanted = torch.zeros_like(drafted)
    if judged is not None:
        judged = judged.to(candidates.ids.device)
        wanted = judged & ~choice.accepted
        rescued = wanted & finite
        if candidates.forbidden is not None:
            refused |= rescued & candidates.forbidden
        if candidates.stop is not None and not rescue_stop_tokens:
            refused |= rescued & candidates.stop
        rescued &= ~refused
        if max_rescue_fraction is not None:
            before = _or_zero(candidates.n_rescued, lengths) + rescued.cumsum(dim=1)
            length = _or_zero(candidates.n_generated, lengths) + position[:k] + 1
            rescued &= before <= max_rescue_fraction * length
    matched = choice.accepted & judged if alone else choice.accepted
    accepted = (matched | rescued) & drafted
    n_accepted = accepted.long().cumprod(dim=1).sum(dim=1)

    inside = position < n_accepted.unsqueeze(1)  # (batch, k+1)
    codes = torch.full((batch, k + 1), VerdictCode.PADDING, dtype=torch.int8, device=candidates.ids.device)
    codes[inside] = VerdictCode.MATCHED
    codes[:, :k][inside[:, :k] & rescued] = VerdictCode.RESCUED
    at_next = position == n_accepted.unsqueeze(1)
    whole = (n_accepted == lengths).unsqueeze(1)
    codes[at_next & whole] = VerdictCode.BONUS
    codes[at_next & ~whole] = VerdictCode.CORRECTED
    following = next_token(candidates, rows, n_accepted, choice)
    if tokens is not None:
        barred = torch.nn.functional.pad(wanted & ~rescued | ~finite, (0, 1)).gather(1, n_accepted.unsqueeze(1))
        following = torch.where(barred.squeeze(1), following, tokens.gather(1, n_accepted.unsqueeze(1)).squeeze(1))
    looked_at = drafted & (position[:k] <= n_accepted.unsqueeze(1))  # what follows a rejection was never decided on
    return Verdict(
        n_accepted=n_accepted,
        next_token=following,
        codes=codes,
        n_refused=(refused & looked_at).sum(dim=1),
        n_non_finite=(~finite & looked_at).sum(dim=1),
    )


class StrictVerifier:
    """Strict verification: the target's own distribution, nothing is rescued."""

    hidden_state = None

    def __init__(self):
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, rows: Rows) -> Verdict:
        """See [`CandidateVerifier`]."""
        return decide(candidates, rows)

    def __repr__(self) -> str:
        return "StrictVerifier()"


class JudgeCandidateVerifier:
    """Judge Decoding: accept where ``sigmoid(head(h)) > threshold`` OR strict verification accepts (2501.19309, section
    3).

    h is the target's hidden state at the drafted token itself, so the judge sees the target's reaction to it.

    Args:
        head ([`JudgeHead`]): the judge.
        threshold (`float`, *optional*): between 0 (lenient) and 1 (strict verification); default: the head's own.
        rescue_stop_tokens (`bool`): whether the judge may end the answer earlier than the target would.
        max_rescue_fraction (`float`, *optional*): at most this share of an answer comes from rescues.

    Raises:
        TypeError: `head` is no JudgeHead, or a number is none.
        ValueError: a number is outside [0, 1].
    """

    def __init__(
        self,
        head: JudgeHead,
        threshold: float | None = None,
        *,
        rescue_stop_tokens: bool = False,
        max_rescue_fraction: float | None = None,
    ):
        if not isinstance(head, JudgeHead):
            raise TypeError(
                f"JudgeCandidateVerifier expects a JudgeHead, got {type(head).__name__}: "
                "load one with JudgeHead.from_pretrained(...)"
            )
        self.head = head
        self.threshold = check_threshold(head.config.threshold if threshold is None else threshold)
        self.rescue_stop_tokens = rescue_stop_tokens
        if max_rescue_fraction is not None:
            try:
                check_threshold(max_rescue_fraction)
            except (TypeError, ValueError) as error:
                raise type(error)(str(error).replace("threshold", "max_rescue_fraction", 1)) from None
        self.max_rescue_fraction = max_rescue_fraction
        self.stats = JudgeStats()

    @property
    def hidden_state(self) -> str:
        """The state that the head reads."""
        return self.head.config.hidden_state

    @property
    def reads_draft_logits(self) -> bool:
        """Whether the head reads numbers that need the draft's logits."""
        return reads_draft_logits(self.head)

    def verify(self, candidates: Candidates, rows: Rows) -> Verdict:
        """See [`CandidateVerifier`]."""
        return decide(
            candidates,
            rows,
            self.judged(head_features(self.head, candidates, rows)),
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
        )

    def judged(self, features: torch.Tensor) -> torch.Tensor:
        """Where the judge accepts: ``sigmoid(head(features)) > threshold``.

        Args:
            features: (..., F), see [`head_features`].

        Returns:
            (...) bool, False where the logit is not a number.
        """
        return self.head(features).sigmoid() > self.threshold

    def with_threshold(self, threshold: float) -> JudgeCandidateVerifier:
        """The same judge at another threshold, with stats of its own."""
        return JudgeCandidateVerifier(
            self.head,
            threshold,
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
        )

    def __repr__(self) -> str:
        return f"JudgeCandidateVerifier({self.head!r}, threshold={self.threshold})"


def head_features(head: JudgeHead, candidates: Candidates, rows: Rows) -> torch.Tensor:
    """What a head reads at the drafted tokens: the state of row j+1, and behind it the extra features, from row j's
    logits, that its config names.

    Returns:
        (batch, k, F), on the device of `rows.hidden`.

    Raises:
        ValueError: it reads the draft's logits, and there are none.
    """
    hidden, names, k = rows.hidden[:, 1:], head.config.extra_features, candidates.ids.shape[1]
    if not names:
        return hidden
    if k == 0:
        return hidden.new_zeros(*hidden.shape[:2], head.config.n_features)
    extra = extra_features(names, rows.logits[:, :k], candidates.ids, candidates.raw_logits)
    return torch.cat([hidden.float(), extra.to(hidden.device)], dim=-1)


def reads_draft_logits(head: JudgeHead) -> bool:
    """Whether a head reads numbers that need the draft's logits."""
    return any(name in DRAFT_FEATURES for name in head.config.extra_features)


def _lengths(candidates: Candidates) -> torch.Tensor:
    if candidates.lengths is not None:
        return candidates.lengths
    batch, k = candidates.ids.shape
    return torch.full((batch,), k, dtype=torch.long, device=candidates.ids.device)


def _or_zero(count: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return (torch.zeros_like(like) if count is None else count).unsqueeze(1)


def _finite(candidates: Candidates, rows: Rows) -> torch.Tensor:
    """(batch, k) bool: the drafted token's hidden state and its raw logit are finite."""
    k = candidates.ids.shape[1]
    finite = rows.logits[:, :k].gather(-1, candidates.ids.unsqueeze(-1)).squeeze(-1).isfinite()
    if rows.hidden is not None:
        finite &= rows.hidden[:, 1:].isfinite().all(dim=-1).to(finite.device)
    return finite
