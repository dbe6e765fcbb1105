"""Keep what a judge rescues in vLLM's model runner V1, with a rejection sampler of our own.

With k drafted tokens, a request has k+1 positions with logits and hidden states. ``metadata.target_logits_indices[j]``
is the position that predicts drafted token j; the next one is the token itself, whose hidden state the judge reads. The
position of the last drafted token gives the bonus token.

This module imports vLLM 0.32 or 0.33; `hf_judge.integrations.vllm` imports it in a worker that has a judge and this
runner.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from hf_judge.integrations.vllm_plugin.counts import DeviceCounts
from hf_judge.integrations.vllm_plugin.flat_rows import (
    force_,
    requests_of,
    rescuable,
    stop_table,
    stop_tokens,
    undone,
)
from hf_judge.integrations.vllm_plugin.settings import checked_verifier
from hf_judge.verify.judge import JudgeCandidateVerifier


class Step(NamedTuple):
    """Holds what the sampler needs about one step of the engine, beside its metadata."""

    hidden: torch.Tensor  # (positions, D), the target's post-norm states at all positions that have logits
    stop: torch.Tensor | None  # (requests, s) int, each request's stop tokens, padded with -1; None: may be rescued


class JudgedRejectionSampler(RejectionSampler):
    """Gives vLLM's rejection sampler scores in which rescued tokens cannot be rejected.

    Outside [`judging`] it is vLLM's own: vLLM warms its sampler up with made-up scores.

    Args:
        sampler, spec_config, device: arguments of vLLM's sampler.
        verifier: the judge.
        counts: where tokens are counted.
    """

    def __init__(
        self, sampler, spec_config, device: torch.device, *, verifier: JudgeCandidateVerifier, counts: DeviceCounts
    ):
        super().__init__(sampler, spec_config, device)
        verifier.head.to(device)
        self.verifier, self.counts = verifier, counts
        self._overruled: torch.Tensor | None = None
        self._step: Step | None = None

    @contextlib.contextmanager
    def judging(self, step: Step) -> Iterator[None]:
        """Judge the calls inside this block."""
        self._step = step
        try:
            yield
        finally:
            self._step = self._overruled = None

    def forward(self, metadata, draft_probs, logits, sampling_metadata):
        """Verify drafted tokens as vLLM does, and count them in a judged step."""
        output = super().forward(metadata, draft_probs, logits, sampling_metadata)
        if self._step is not None and self._overruled is not None:
            ids, ends = metadata.draft_token_ids, metadata.cu_num_draft_tokens
            request = requests_of(ends, ids.shape[0])
            starts = torch.nn.functional.pad(ends, (1, 0))
            place = torch.arange(ids.shape[0], device=ids.device) - starts[request]
            n_sampled = (output.sampled_token_ids >= 0).sum(dim=1)[request]  # a rejected place holds -1
            self.counts.add(place, n_sampled, ids >= 0, self._overruled)
        return output

    def apply_logits_processors(self, logits, sampling_metadata, metadata):
        """Apply vLLM's constraints (grammar masks are in the logits already), then the judge.

        vLLM applies temperature, top-k and top-p afterwards: they must not bar a rescue.

        Args:
            logits: (n, V) float32, logits that predict the drafted tokens; changed in place.
            sampling_metadata, metadata: vLLM's own.

        Returns:
            (n, V) float32.
        """
        scores = super().apply_logits_processors(logits, sampling_metadata, metadata)
        if self._step is None:
            return scores
        ids = metadata.draft_token_ids
        hidden = self._step.hidden[metadata.target_logits_indices + 1]
        request = requests_of(metadata.cu_num_draft_tokens, ids.shape[0])
        stop = None
        if self._step.stop is not None:
            stop = stop_tokens(self._step.stop, ids, request)
        rescued = rescuable(self.verifier.judged(hidden), hidden, scores, ids, stop)
        matched = scores.argmax(dim=-1) == ids
        rescued &= ~undone(rescued, matched, request, self.verifier.rescue_window)
        if get_tp_group().world_size > 1:  # every rank commits tokens: they must not differ by rounding
            rescued = get_tp_group().broadcast(rescued.to(torch.int32), src=0).bool()
        self._overruled = rescued & ~matched
        return force_(scores, ids, rescued)


def install() -> None:
    """Give a judged sampler to every V1 model runner of this process whose configuration names a judge."""
    if not getattr(GPUModelRunner.__init__, "is_judged", False):
        GPUModelRunner.__init__ = _with_judged_sampler(GPUModelRunner.__init__)
        GPUModelRunner.sample_tokens = _judging(GPUModelRunner.sample_tokens)


def _with_judged_sampler(init):
    @functools.wraps(init)
    def judged(self, vllm_config, device, *args, **kwargs):
        init(self, vllm_config, device, *args, **kwargs)
        verifier = checked_verifier(vllm_config)
        # only the last pipeline stage samples
        if verifier is not None and hasattr(self, "rejection_sampler"):
            counts = DeviceCounts(self.speculative_config.num_speculative_tokens, self.device)
            self.rejection_sampler = JudgedRejectionSampler(
                self.sampler, self.speculative_config, self.device, verifier=verifier, counts=counts
            )
            self.stop_table = StopTable(self)

    judged.is_judged = True
    return judged


def _judging(sample_tokens):
    @functools.wraps(sample_tokens)
    def judged(self, grammar_output):
        sampler, state = getattr(self, "rejection_sampler", None), self.execute_model_state
        if not isinstance(sampler, JudgedRejectionSampler) or state is None or state.spec_decode_metadata is None:
            return sample_tokens(self, grammar_output)
        stop = None if sampler.verifier.rescue_stop_tokens else self.stop_table()
        with sampler.judging(Step(state.sample_hidden_states, stop)):
            output = sample_tokens(self, grammar_output)
        sampler.counts.attach(output)
        return output

    return judged


class StopTable:
    """Makes the table of the stop tokens of a step's requests, anew only when they have changed.

    Args:
        runner: vLLM's V1 model runner.
    """

    def __init__(self, runner: GPUModelRunner):
        self._runner = runner
        self._stops: list[set[int]] | None = None
        self._table: torch.Tensor | None = None

    def __call__(self) -> torch.Tensor:
        """Return the table (requests, s) int32 on the runner's device, in the order of its batch."""
        runner = self._runner
        params = [runner.requests[request].sampling_params for request in runner.input_batch.req_ids]
        stops = [param.all_stop_token_ids for param in params]
        if stops != self._stops:
            self._stops = [set(tokens) for tokens in stops]
            self._table = stop_table(stops, runner.device)
        return self._table
