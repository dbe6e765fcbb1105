"""Keep what a judge rescues in vLLM's model runner V2, by its own hook for samplers.

vLLM builds the samplers of a V2 runner through `ModelState.custom_sampler`. There the judge becomes the last logits
processor: it runs after every constraint (grammar masks lie in the logits already; a thinking budget comes later and
wins) and before temperature, min-p, top-k and top-p, on a float32 copy, so that logprobs stay the target's own. A
request with k drafted tokens has k+1 rows of logits: row r predicts the token that was fed to the model at row r+1,
whose hidden state the judge reads.

vLLM does not hand hidden states to a sampler: that is the one patch, around `GPUModelRunner.sample`. A step in which
they do not arrive, or in which not every row was judged, ends with an error: it is never served strictly.

This module imports vLLM 0.32 or 0.33; `hf_judge.integrations.vllm` imports it in a worker that has a judge and this
runner.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from hf_judge.integrations.vllm_plugin.counts import DeviceCounts
from hf_judge.integrations.vllm_plugin.flat_rows import (
    force_,
    requests_of,
    rescuable,
    stop_table,
    stop_tokens,
    undone,
)
from hf_judge.integrations.vllm_plugin.settings import KEY, checked_verifier
from hf_judge.verify.judge import JudgeCandidateVerifier


class JudgeLogitsProcessor(LogitsProcessor):
    """Rewrites the scores of rescued tokens, in the steps that [`JudgedRejectionSampler`] announces.

    Args:
        verifier: the judge, on the runner's device.
        n_slots: number of requests that vLLM has places for.
        device: the runner's.
    """

    def __init__(self, verifier: JudgeCandidateVerifier, n_slots: int, device: torch.device):
        self._verifier, self._device = verifier, device
        self._stops: list[frozenset[int]] = [frozenset()] * n_slots  # of the request in each place
        self._table: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        self._invalid: torch.Tensor | None = None
        self._alike = False
        self._n_seen = 0
        self.overruled: list[torch.Tensor] = []
        """Of the last step, one (n,) bool for each call, at the rows of the drafted tokens themselves."""

    def add_request(self, req_idx: int, sampling_params) -> bool:
        """Note the stop tokens of a request; its logits are always processed (in a copy)."""
        stops = frozenset() if self._verifier.rescue_stop_tokens else frozenset(sampling_params.all_stop_token_ids)
        if stops != self._stops[req_idx]:
            self._stops[req_idx], self._table = stops, None
        return True

    def apply_staged_writes(self) -> None:
        """Bring the stop tokens to the device where they have changed."""
        if self._table is None:
            self._table = stop_table(self._stops, self._device)

    @contextlib.contextmanager
    def judging(self, hidden: torch.Tensor, invalid: torch.Tensor | None, *, alike: bool) -> Iterator[None]:
        """Judge the calls inside this block, which bring all rows once, in their order and whole requests at a time.

        Args:
            hidden: (rows, D), post-norm states of the target at the rows of logits.
            invalid: (rows,) bool, drafted tokens that vLLM rejects before any rule; None: there are none.
            alike: whether all ranks of the tensor-parallel group sample these rows, and must not differ.

        Raises:
            RuntimeError: a row was not brought.
        """
        self._hidden, self._invalid, self._alike, self._n_seen = hidden, invalid, alike, 0
        self.overruled = []
        try:
            yield
            if self._n_seen != hidden.shape[0]:
                raise RuntimeError(
                    f"{KEY}: expected vLLM to process {hidden.shape[0]} rows of logits, it processed {self._n_seen}: "
                    f"drafted tokens would be verified strictly. Report this, and serve without '{KEY}' until then"
                )
        finally:
            self._hidden = self._invalid = None

    def apply(self, logits: torch.Tensor, ctx) -> torch.Tensor:
        """Rewrite the rows that predict rescued tokens, in place.

        Args:
            logits: (n, V) float32, the next rows of the step.
            ctx: vLLM's `LogitsContext` of these rows.

        Returns:
            `logits`.
        """
        if self._hidden is None:  # a step without drafts
            return logits
        rows = slice(self._n_seen, self._n_seen + logits.shape[0])
        self._n_seen = rows.stop
        drafted = ctx.expanded_local_pos > 0
        if self._invalid is not None:
            drafted = drafted & ~self._invalid[rows]
        # row r predicts the token of row r+1; a request's first token is no draft, so rows of two requests never mix
        ids = ctx.input_ids.masked_fill(~drafted, -1)[1:]
        scores, hidden = logits[:-1], self._hidden[rows][1:]
        request = ctx.expanded_idx_mapping[1:]
        stop = stop_tokens(self._table, ids, request)
        rescued = rescuable(self._verifier.judged(hidden), hidden, scores, ids, stop)
        matched = (scores.argmax(dim=-1) == ids) | (ctx.expanded_local_pos[1:] == 0)
        rescued &= ~undone(rescued, matched, request, self._verifier.rescue_window)
        if self._alike and get_tp_group().world_size > 1:  # every rank commits tokens: no difference by rounding
            rescued = get_tp_group().broadcast(rescued.to(torch.int32), src=0).bool()
        self.overruled.append(torch.nn.functional.pad(rescued & ~matched, (1, 0)))
        force_(scores, ids, rescued)
        return logits


class JudgedRejectionSampler(RejectionSampler):
    """Announces each step with drafts to the judge; all else is vLLM's.

    Args:
        sampler, spec_config, device: arguments of vLLM's sampler.
        verifier: the judge.
    """

    def __init__(self, sampler, spec_config, device: torch.device, *, verifier: JudgeCandidateVerifier):
        super().__init__(sampler, spec_config, device)
        verifier.head.to(device)
        self.judge = JudgeLogitsProcessor(verifier, sampler.req_states.max_num_reqs, device)
        sampler.logits_processors.append(self.judge)
        self.counts = DeviceCounts(spec_config.num_speculative_tokens, device)
        self._hidden: torch.Tensor | None = None
        self._alike = False

    @contextlib.contextmanager
    def reading(self, hidden: torch.Tensor, *, alike: bool) -> Iterator[None]:
        """Let the judge read these hidden states in the calls inside this block.

        Args:
            hidden: (positions, D), post-norm states at all positions that the target was run on.
            alike: whether all ranks of the tensor-parallel group sample the same requests.
        """
        self._hidden, self._alike = hidden, alike
        try:
            yield
        finally:
            self._hidden = None

    def __call__(self, logits, input_batch, draft_logits=None, invalid_drafts=None):
        """Verify drafted tokens as vLLM does, over logits in which rescued tokens cannot be rejected.

        Raises:
            RuntimeError: the target's hidden states did not arrive, or a row was not judged.
        """
        if self._hidden is None:
            raise RuntimeError(
                f"{KEY}: vLLM verifies drafted tokens outside GPUModelRunner.sample, where the target's hidden states "
                f"are not to be had: set VLLM_USE_V2_MODEL_RUNNER=0, or serve without '{KEY}'"
            )
        hidden = self._hidden[input_batch.logits_indices]
        with self.judge.judging(hidden, invalid_drafts, alike=self._alike):
            output = super().__call__(logits, input_batch, draft_logits, invalid_drafts)
        place = input_batch.expanded_local_pos - 1
        request = requests_of(input_batch.cu_num_logits[1:], place.shape[0])
        self.counts.add(place, output.num_sampled[request], place >= 0, torch.cat(self.judge.overruled))
        return output


def install() -> None:
    """Give a judged sampler to every V2 model runner of this process whose configuration names a judge."""
    if not getattr(ModelState.custom_sampler, "is_judged", False):
        ModelState.custom_sampler = _with_judged_sampler(ModelState.custom_sampler)
        GPUModelRunner.load_model = _checking(GPUModelRunner.load_model)
        GPUModelRunner.sample = _reading(GPUModelRunner.sample)
        GPUModelRunner.sample_tokens = _counting(GPUModelRunner.sample_tokens)


def _with_judged_sampler(custom_sampler):
    @functools.wraps(custom_sampler)
    def judged(self, sampler):
        verifier = checked_verifier(self.vllm_config)
        if verifier is None:
            return custom_sampler(self, sampler)
        speculative = self.vllm_config.speculative_config
        return sampler, JudgedRejectionSampler(sampler, speculative, self.device, verifier=verifier)

    judged.is_judged = True
    return judged


def _checking(load_model):
    @functools.wraps(load_model)
    def checked(self, *args, **kwargs):
        load_model(self, *args, **kwargs)
        # only the last pipeline stage samples
        judged = isinstance(self.rejection_sampler, JudgedRejectionSampler)
        if self.is_last_pp_rank and not judged and checked_verifier(self.vllm_config) is not None:
            raise ValueError(
                f"{KEY} cannot judge '{self.model_config.model}': the model samples with a class of its own "
                f"({type(self.rejection_sampler).__name__}): serve it without '{KEY}'"
            )

    return checked


def _reading(sample):
    @functools.wraps(sample)
    def judged(self, hidden_states, input_batch, grammar_output):
        if not isinstance(self.rejection_sampler, JudgedRejectionSampler):
            return sample(self, hidden_states, input_batch, grammar_output)
        # with batch-sharded sampling each rank has requests of its own
        with self.rejection_sampler.reading(hidden_states, alike=self.batch_sharder is None):
            return sample(self, hidden_states, input_batch, grammar_output)

    return judged


def _counting(sample_tokens):
    @functools.wraps(sample_tokens)
    def counting(self, grammar_output):
        output = sample_tokens(self, grammar_output)
        if isinstance(self.rejection_sampler, JudgedRejectionSampler):
            self.rejection_sampler.counts.attach(output)
        return output

    return counting
