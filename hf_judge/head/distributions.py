"""Compute numbers about next-token distributions, for training-free rules and for heads that read more than the state.

`extra_features` computes a head's extra features for training and for serving, so the two cannot disagree. In formulas,
p is the target's distribution, q the draft's, x the drafted token and z the target's logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# the names that a head's config may list, in the order in which the values stand after the hidden state
EXTRA_FEATURES = ("target_log_prob", "entropy", "margin", "draft_log_prob", "kl")
DRAFT_FEATURES = ("draft_log_prob", "kl")  # of these, the ones that need the draft's logits


def extra_features(
    names: Sequence[str], target_logits: torch.Tensor, ids: torch.Tensor, draft_logits: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute what the verification says about tokens x, from raw logits: before any processor, at temperature 1.

    `target_log_prob`: log p(x). `entropy`: H(p). `margin`: max z - z(x), 0 where strict verification accepts greedily.
    `draft_log_prob`: log q(x). `kl`: KL(p || q). All in nats.

    Args:
        names: names out of `EXTRA_FEATURES`.
        target_logits: (..., V) float, the target's logits at the positions that predict the tokens.
        ids: (...) long, the tokens.
        draft_logits: (..., V) float, the draft's logits there; None: not known. Columns of -inf are tokens that the
            draft's matrices lack (matrices of one tokenizer may be padded to other sizes); the KL leaves them out.

    Returns:
        (..., len(names)) float32; NaN in place of infinite values, so that a head accepts nothing by them.

    Raises:
        ValueError: a name needs the draft's logits, and there are none or they are over another vocabulary.
    """
    wants_draft = [name for name in names if name in DRAFT_FEATURES]
    if wants_draft and draft_logits is None:
        raise ValueError(
            f"this head reads {' and '.join(wants_draft)}, and this source of drafts has no logits of its own (prompt "
            "lookup and the like): draft with assistant_model=, or train a head without them"
        )
    if "kl" in names and draft_logits.shape[-1] != target_logits.shape[-1]:
        raise ValueError(
            f"kl compares distributions over one vocabulary, got {target_logits.shape[-1]} tokens of the target and "
            f"{draft_logits.shape[-1]} of the draft: train a head without it"
        )
    target_logits = target_logits.float()
    draft_logits = None if draft_logits is None else draft_logits.to(target_logits.device, torch.float32)
    values = {
        "target_log_prob": lambda: at(target_logits.log_softmax(dim=-1), ids),
        "entropy": lambda: entropy(target_logits),
        "margin": lambda: target_logits.amax(dim=-1) - at(target_logits, ids),
        "draft_log_prob": lambda: at(draft_logits.log_softmax(dim=-1), ids),
        "kl": lambda: kl_divergence(*over_shared_tokens(target_logits, draft_logits)),
    }
    found = torch.stack([values[name]() for name in names], dim=-1)
    return torch.where(found.isfinite(), found, torch.nan)


def entropy(scores: torch.Tensor) -> torch.Tensor:
    """Return H(softmax(scores)) in nats over the last dimension; ruled-out tokens (-inf) count nothing."""
    log_probabilities = scores.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(scores.dtype).min)).sum(dim=-1)


def kl_divergence(scores: torch.Tensor, draft_scores: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) in nats over the last dimension; infinite where q rules out what p does not."""
    target, draft = scores.log_softmax(dim=-1), draft_scores.log_softmax(dim=-1)
    terms = target.exp() * (target - draft)
    return torch.where(target.exp() > 0, terms, 0.0).sum(dim=-1)


def over_shared_tokens(
    scores: torch.Tensor, draft_scores: torch.Tensor, raw: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut scores down to the tokens that both models have.

    Args:
        scores: (..., V) float, the target's scores.
        draft_scores: (..., V) float, the draft's scores; -inf in the last columns where it has fewer tokens.
        raw: (..., V) float, the draft's scores before any processor; None: `draft_scores`.

    Returns:
        Both scores, (..., n).
    """
    n, raw = scores.shape[-1], draft_scores if raw is None else raw
    # the last column alone tells whether there is anything to cut
    if raw.numel() and (raw[..., -1] == -torch.inf).all():
        present = (raw != -torch.inf).flatten(0, -2).any(dim=0)
        n = int(present.nonzero().max()) + 1 if present.any() else n
    return scores[..., :n], draft_scores[..., :n]


def at(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the values (...) of the tokens `ids` (...) in `values` (..., V)."""
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
