"""Verify the drafted tokens together: block verification (2403.10444), which loses nothing and accepts more."""

from __future__ import annotations

import torch

from hf_judge.head.distributions import at
from hf_judge.rules.base import draft_scores_of, residual_tokens
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats
from hf_judge.verify.strict import StrictChoice, draft_lengths, strict_choice


def block_accepts(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept the longest prefix of the draft whose own test passes.

    Block verification (2403.10444, algorithm 2). With ``w_0 = 1`` and ``w_i = min(w_{i-1} p(x_i) / q(x_i), 1)``, the
    prefix of i tokens passes where ``u_i <= h_i``. For the whole draft h_i is w_i; for a shorter prefix it is
    ``s_i / (s_i + 1 - w_i)`` with ``s_i = sum max(w_i p - q, 0)`` over the tokens that may follow it. A rejected token
    is replaced by a draw from ``norm(max(w_i p - q, 0))``.

    Args:
        target: (batch, k+1, V) float, p.
        draft: (batch, k, V) float, q.
        ids: (batch, k) long, the drafted tokens.
        lengths: (batch,) long, drafted tokens of each prompt.
        draws: (batch, k) float in [0, 1), u.

    Returns:
        Where the tokens of the longest passing prefix are, (batch, k) bool, and ``w_0`` to ``w_{k-1}``, (batch, k).
    """
    k = ids.shape[1]
    chosen, proposed = at(target[:, :k], ids), at(draft, ids).clamp(min=torch.finfo(draft.dtype).tiny)
    weights = [torch.ones_like(chosen[:, 0])]
    for i in range(k):
        weights.append((weights[-1] * chosen[:, i] / proposed[:, i]).clamp(max=1))
    weights = torch.stack(weights, dim=1)  # (batch, k+1): w_0 to w_k
    missing = (weights[:, 1:k, None] * target[:, 1:k] - draft[:, 1:]).clamp(min=0).sum(dim=-1)
    total = missing + 1 - weights[:, 1:k]
    chances = torch.where(total > 0, missing / total, 1.0)  # total 0: p and q are equal and w is 1
    chances = torch.cat([chances, weights[:, -1:]], dim=1)  # (batch, k): h_1 to h_k
    size = torch.arange(1, k + 1, device=ids.device)
    chances = torch.where(size == lengths.unsqueeze(1), weights[:, 1:], chances)
    passed = (draws <= chances) & (chances > 0) & (size <= lengths.unsqueeze(1))
    longest = (passed * size).amax(dim=1, keepdim=True)
    return size <= longest, weights[:, :-1]


class BlockVerifier:
    """Verifies the draft as a block, see [`block_accepts`]: the target's own distribution, in fewer forwards.

    In greedy decoding, and with a source of drafts that draws nothing at random, this is strict verification.
    """

    hidden_state = None

    def __init__(self):
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, outputs)
        if not outputs.do_sample or candidates.logits is None or candidates.ids.shape[1] == 0:
            return decide(candidates, outputs, choice=choice)
        draft = draft_scores_of(candidates, outputs, "BlockVerifier").softmax(dim=-1)
        target = outputs.scores.softmax(dim=-1)
        accepted, weights = block_accepts(target, draft, candidates.ids, draft_lengths(candidates), choice.draws)
        tokens = residual_tokens(candidates, target, weights.unsqueeze(-1) * target[:, :-1], draft)
        return decide(candidates, outputs, choice=StrictChoice(accepted, None, choice.draws), tokens=tokens)

    def __repr__(self) -> str:
        return "BlockVerifier()"
