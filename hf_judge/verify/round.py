"""Defines one round of speculative decoding as tensors, and the protocol of the rules that decide about it.

The draft proposed x_1..x_k after a prefix. One target forward gave outputs at k+1 positions:

    position            0     1     2    ...   k
    token read there    t    x_1   x_2   ...  x_k     t: the last token of the prefix
    logits predict     x_1   x_2   x_3   ...  (the token after the draft)

So the logits at position i-1 predict x_i, and the hidden state at position i is the target's reaction to x_i itself.
Tensors count from 0: drafted token j (0 <= j < k) is predicted at position j and read at position j+1.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch

from hf_judge.verify.stats import JudgeStats


class Candidates(NamedTuple):
    """What the draft proposed in one round, for every prompt of the batch."""

    ids: torch.Tensor  # (batch, k) long, drafted tokens, padded on the right
    lengths: torch.Tensor | None = None  # (batch,) long, drafted tokens of each prompt; None: k each
    logits: torch.Tensor | None = None  # (batch, k, V) float, scores the ids were drawn from; None: no random draw
    forbidden: torch.Tensor | None = None  # (batch, k) bool, tokens that a hard constraint rules out; None: none
    stop: torch.Tensor | None = None  # (batch, k) bool, tokens that end the answer; None: none
    n_generated: torch.Tensor | None = None  # (batch,) long, new tokens of the answer before this round; None: 0
    n_rescued: torch.Tensor | None = None  # (batch,) long, rescued tokens among those; None: 0
    raw_logits: torch.Tensor | None = None  # (batch, k, V) float, the draft's before its processors; None: unknown
    places: torch.Tensor | None = None  # (batch,) long, place of each prompt in the call's batch; None: 0, 1, ...
    texts: tuple[torch.Tensor, ...] | None = None  # (1, n) long each, prompt and answer before the round; None: unknown


class TargetOutputs(NamedTuple):
    """What the target's forward gave at the k+1 positions of the round."""

    logits: torch.Tensor  # (batch, k+1, V) float32, as the model gave them
    scores: torch.Tensor  # (batch, k+1, V) float32, after the logits processors
    hidden: torch.Tensor | None = None  # (batch, k+1, D), the state that the verifier's `hidden_state` names
    do_sample: bool = False  # True: the next token is drawn from softmax(scores); False: it is their argmax


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

    `verify` receives one whole round and must not change its arguments. It decides the accepted prefix, the target's
    next token and the codes; [`hf_judge.verify.decide`] makes these from "strict verification accepts" and "the rule
    accepts", and keeps hard constraints.

    Two attributes are optional. ``hidden_state`` (``"post_norm"``, ``"pre_norm"``, or ``None`` for no state; default
    ``"post_norm"``) says what `outputs.hidden` must hold. ``reads_draft_logits`` (default False) says that
    `candidates.raw_logits` is needed, where the source of drafts has logits.
    """

    stats: JudgeStats  # sums over every call that this verifier served

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict: ...
