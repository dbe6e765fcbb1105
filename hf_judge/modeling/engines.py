"""Chooses the engine that serves a judged call, and runs the call on it."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from hf_judge.decoding.backend import Backend
from hf_judge.decoding.loop import judged_decoding
from hf_judge.decoding.upstream_caches import CroppingBackend
from hf_judge.modeling import refusals
from hf_judge.ragged.backend import RaggedBackend
from hf_judge.ragged.eligibility import why_not_ragged
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.speculators.source import Eagle3Source
from hf_judge.upstream.candidates import CandidateSource, DraftingOptions
from hf_judge.upstream.forward import cache_of
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.states import StateReader
from hf_judge.verify.round import CandidateVerifier

logger = logging.getLogger(__name__)


def decode(call: PreparedCall, verifier: CandidateVerifier, options: DraftingOptions, engine: str):
    """Return the output of a judged call.

    Args:
        call: the call as `generate()` prepared it.
        verifier: the acceptance rule.
        options: drafting settings of this call.
        engine: "auto", "ragged" or "upstream".
    """
    refusals.check_prepared(call)
    ranks = Ranks.of(call.model, draft_alone=_drafts_alone(call))
    refusals.check_processes(call, ranks)
    state = getattr(verifier, "hidden_state", "post_norm")
    draft = call.assistant_model
    layers = draft.eagle_config.aux_layers if isinstance(draft, Eagle3DraftModel) else ()
    with StateReader(call.model, state, layers) as reader, ranks.one_random_stream():
        backend = _backend(call, verifier, options, engine, reader, ranks)
        try:
            output = judged_decoding(call, backend, verifier, ranks)
        except BaseException:
            backend.close(failed=True)  # probably out of memory: free everything
            raise
        backend.close()
        return output


def _backend(
    call: PreparedCall,
    verifier: CandidateVerifier,
    options: DraftingOptions,
    engine: str,
    reader: StateReader,
    ranks: Ranks,
) -> Backend:
    """Return the ragged engine where it can serve the call, upstream's caches elsewhere."""
    reason = why_not_ragged(call)
    refusals.check_chosen_engine(call, engine, reason)
    if engine != "upstream" and reason is None:
        return RaggedBackend(call, reader, options, ranks)
    if engine == "auto":
        logger.info("judge_engine: upstream's caches, because %s", reason)
    # sliding-window and linear layers keep what a rollback needs
    cache_of(call.model_kwargs).activate_past_recording()
    draft = call.assistant_model
    if isinstance(draft, Eagle3DraftModel):
        source = Eagle3Source(call, draft, options, reader)
    else:
        source = CandidateSource(call, options, raw_logits=getattr(verifier, "reads_draft_logits", False))
    refusals.check_source(call, source)
    return CroppingBackend(call, source, reader, ranks)


def _drafts_alone(call: PreparedCall) -> bool:
    """Tell whether drafting runs nothing but a draft that this process has the whole of."""
    draft = call.assistant_model
    return isinstance(draft, PreTrainedModel) and (draft.tp_size or 1) == 1 and not call.drafts_with_target
