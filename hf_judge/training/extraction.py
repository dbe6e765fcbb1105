"""Extract the features of labelled tokens: one forward pass of the target per response, into a [`FeatureStore`].

The feature of a token is the target's hidden state at the token itself, read by the same `StateReader` as in
generation; beside it, on request, numbers of the verification, computed by the function that serves them. Files are
written shard by shard, so a run that was killed goes on where it stopped, several processes share the work, and a
million tokens need not fit in memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.files.durable import write_together
from hf_judge.head.compatibility import quantization_of
from hf_judge.head.config import HIDDEN_STATES, check_extra_features
from hf_judge.head.distributions import DRAFT_FEATURES, extra_features
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.head.repository.publish import example_of
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.responses import LabelledResponse, data_hash
from hf_judge.labelling.tokens import IGNORED, LabelReport, TokenLabels, label_rows
from hf_judge.training.store import FORMAT_VERSION, INDEX_NAME, FeatureStore, read_index
from hf_judge.upstream.forward import input_device, of_width, readable, vocabulary_rows
from hf_judge.upstream.states import StateReader

SHARD_BYTES = 1 << 28
STATES_OF = ("token", "before")


class Shard(NamedTuple):
    """Consecutive labelled responses whose features go into one file."""

    file: str
    responses: list[TokenLabels]

    @property
    def n_tokens(self) -> int:
        """Number of labelled tokens."""
        return sum(map(_n_labelled, self.responses))


def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[LabelledResponse],
    output_dir: str | os.PathLike,
    *,
    hidden_state: str = "post_norm",
    state_of: str = "token",
    after_mistake: str = "ignore",
    on_cut_token: str = "mistaken",
    max_length: int | None = None,
    batch_size: int = 8,
    draft_model: PreTrainedModel | None = None,
    extra: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    names: Sequence[str] | None = None,
    strict: bool = False,
) -> tuple[FeatureStore, LabelReport]:
    """Run the target once over every response and keep the states of its labelled tokens.

    Args:
        model: the target.
        tokenizer: the target's tokenizer.
        rows: the labelled responses.
        output_dir: the folder of the shards; a run that was interrupted goes on there. The processes of `accelerate
            launch` share the shards, which do not depend on how many processes there are.
        hidden_state: "post_norm" or "pre_norm", as in [`JudgeConfig`].
        state_of: "token": the state at the labelled token itself, which a judge reads; "before": the state that
            predicts it, which [`hf_judge.rules.DiversedVerifier`] reads.
        after_mistake, on_cut_token, max_length: options of [`label_rows`].
        batch_size: responses per forward; the logits of a whole batch are in memory at once.
        draft_model: the draft, which reads the same ids; only the extra features "draft_log_prob" and "kl" need it.
        extra: names in `hf_judge.head.distributions.EXTRA_FEATURES` of numbers to keep beside the states.
        shard_bytes: size of a shard, and about what is held in memory.
        names, strict: options of [`label_rows`] about responses that cannot be labelled.

    Returns:
        The store, and the report of labels and skipped responses.

    Raises:
        ValueError: `output_dir` holds features of other data or settings; no token is labelled.
    """
    if hidden_state not in HIDDEN_STATES:
        raise ValueError(f"hidden_state must be one of {HIDDEN_STATES}, got {hidden_state!r}")
    if state_of not in STATES_OF:
        raise ValueError(f"state_of must be one of {STATES_OF}, got {state_of!r}")
    extra, rows, output_dir = check_extra_features(extra), list(rows), Path(output_dir)
    draft_model = _needed_draft(draft_model, extra)
    options = {"after_mistake": after_mistake, "on_cut_token": on_cut_token, "max_length": max_length}
    encoded, report = label_rows(rows, tokenizer, names=names, strict=strict, **options)
    if not encoded:
        raise ValueError(f"no labelled tokens: {report}")
    if state_of != "token":  # written for the others alone, so that features of earlier releases stay as they are
        options["state_of"] = state_of
    made_by = {"hidden_state": hidden_state, "extra_features": extra or None, "options": options}
    index = _models_and_data(model, draft_model, rows, encoded) | made_by | {"shard_bytes": shard_bytes}
    if not _is_complete(output_dir, index):
        shards = plan_shards(encoded, index["hidden_size"] + len(extra), shard_bytes)
        with torch.no_grad(), StateReader(model, hidden_state) as reader:
            columns_of = functools.partial(
                _columns, model=model, reader=reader, draft_model=draft_model, extra=extra, before=state_of == "before"
            )
            write_shards(shards, output_dir, index, model, columns_of, batch_size=batch_size)
    return FeatureStore(output_dir), report


def plan_shards(encoded: list[TokenLabels], width: int, shard_bytes: int) -> list[Shard]:
    """Divide labelled responses into shards, in their order, whatever the batch size is.

    Args:
        encoded: the labelled responses.
        width: D, numbers per token.
        shard_bytes: size of a shard in float32; a response longer than that has a shard of its own.
    """
    room, groups, n_tokens = max(1, shard_bytes // (4 * width)), [], 0
    for tokens in encoded:
        n_labelled = _n_labelled(tokens)
        if not groups or n_tokens + n_labelled > room:
            groups.append([])
            n_tokens = 0
        groups[-1].append(tokens)
        n_tokens += n_labelled
    return [Shard(f"features-{number:05d}.safetensors", group) for number, group in enumerate(groups)]


def write_shards(
    shards: list[Shard],
    output_dir: Path,
    index: dict,
    model: PreTrainedModel,
    columns_of: Callable[[list[TokenLabels]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
) -> None:
    """Write the shards that are missing, each process its share, and the index once all of them are there.

    Args:
        shards: all shards of the store.
        output_dir: the folder of the store.
        index: what the features depend on.
        model: the target.
        columns_of: returns the columns of a batch of responses.
        batch_size: responses per batch.
    """
    state = processes(model)
    if state.is_main_process:
        write_together({output_dir / INDEX_NAME: json.dumps(index | {"shards": [], "complete": False})})
    state.wait_for_everyone()
    settings = {"settings": hashlib.sha256(json.dumps(index).encode()).hexdigest()}
    mine = shards[state.process_index :: state.num_processes]
    todo = [shard for shard in mine if not _is_finished(output_dir / shard.file, settings)]
    n_mine, n_todo = (sum(len(shard.responses) for shard in some) for some in (mine, todo))
    hidden = not state.is_main_process
    with tqdm(total=n_mine, initial=n_mine - n_todo, desc="Features", unit="response", disable=hidden) as bar:
        for shard in todo:
            parts = []
            for start in range(0, len(shard.responses), batch_size):
                batch = shard.responses[start : start + batch_size]
                parts.append(columns_of(batch))
                bar.update(len(batch))
            tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
            write_together({output_dir / shard.file: safetensors_bytes(tensors, settings)})
    state.wait_for_everyone()
    if state.is_main_process:
        written = [{"file": s.file, "n_responses": len(s.responses), "n_tokens": s.n_tokens} for s in shards]
        write_together({output_dir / INDEX_NAME: json.dumps(index | {"shards": written, "complete": True})})
    state.wait_for_everyone()


def _needed_draft(draft_model: PreTrainedModel | None, extra: list[str]) -> PreTrainedModel | None:
    """Return the draft where an extra feature needs it, else None.

    Raises:
        ValueError: it is needed and was not passed.
    """
    needing = [name for name in extra if name in DRAFT_FEATURES]
    if needing and draft_model is None:
        raise ValueError(f"the extra features {', '.join(needing)} come from the draft: pass draft_model as well")
    return draft_model if needing else None


def _models_and_data(model, draft_model, rows: list[LabelledResponse], encoded: list[TokenLabels]) -> dict:
    """Return the part of an index that says whose features these are, and of which tokens."""
    return {
        "format_version": FORMAT_VERSION,
        "model": _name(model),
        "draft_model": None if draft_model is None else _name(draft_model),
        "quantization": quantization_of(model),
        "fingerprint": fingerprint_of(model),
        "labelled_draft": _labelled_draft(rows),
        "example_prompt": example_of(row.prompt for row in rows[:100]),
        "hidden_size": model.config.get_text_config().hidden_size,
        "data_hash": data_hash(rows),
        "tokens_hash": hashlib.sha256(repr([(t.input_ids, t.labels) for t in encoded]).encode()).hexdigest(),
        "rows": [{"source": row.source, "prompt": row.prompt_hash, "task_id": row.task_id} for row in rows],
    }


def _labelled_draft(rows: list[LabelledResponse]) -> dict | None:
    """Return the draft whose tokens the examples label; None: they name none, or several."""
    drafts = [row.draft for row in rows if row.draft is not None]
    return drafts[0] if drafts and all(draft == drafts[0] for draft in drafts) else None


def _columns(
    batch: list[TokenLabels], *, model, reader: StateReader, draft_model, extra: list[str], before: bool
) -> dict[str, torch.Tensor]:
    """Run the models over a batch of responses and return the columns of its n labelled tokens, (n, ...)."""
    labels = _padded([t.labels for t in batch], IGNORED)
    kept = labels != IGNORED  # (batch, longest) bool
    ids = _padded([t.input_ids for t in batch], 0)
    inputs = _inputs(model, batch, ids)
    outputs = model(**reader.request(inputs, {}))
    # a token is predicted by the position before it; the first token of a sequence is the prompt's and never labelled
    best = outputs.logits[:, :-1].argmax(dim=-1)
    matched = (best == inputs["input_ids"][:, 1:].to(best.device)).cpu()
    states = reader.read(outputs, ids.shape[1])
    states = states[:, :-1][kept[:, 1:]] if before else states[kept]
    of_response, position = kept.nonzero(as_tuple=True)
    columns = {
        "features": states.cpu(),
        "labels": labels[kept].to(torch.int8),
        "matched": matched[kept[:, 1:]],
        "row": torch.tensor([t.row for t in batch])[of_response],
        "position": position - torch.tensor([t.n_prompt for t in batch])[of_response],
    }
    if extra:
        logits, draft_logits = _predicting(outputs.logits, kept), None
        if draft_model is not None:
            draft_logits = _predicting(draft_model(**_inputs(draft_model, batch, ids)).logits, kept)
            draft_logits = of_width(draft_logits, vocabulary_rows(model))
        columns["extra_features"] = extra_features(extra, logits, ids[kept].to(logits.device), draft_logits).cpu()
    return columns


def _inputs(model: PreTrainedModel, batch: list[TokenLabels], ids: torch.Tensor) -> dict:
    """Return what a model reads: responses padded on the right, where causal attention never looks."""
    mask = _padded([[1] * len(t.input_ids) for t in batch], 0)
    device = input_device(model)
    return {"input_ids": readable(model, ids).to(device), "attention_mask": mask.to(device), "use_cache": False}


def _predicting(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, V) float32 that predict the labelled tokens."""
    return logits[:, :-1][kept[:, 1:].to(logits.device)].float()


def _padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [value] * (longest - len(sequence)) for sequence in sequences])


def _n_labelled(tokens: TokenLabels) -> int:
    return sum(label != IGNORED for label in tokens.labels)


def _is_complete(output_dir: Path, index: dict) -> bool:
    """Return whether a run of the same data and settings finished here.

    Raises:
        ValueError: the folder holds features of other data or settings.
    """
    found = read_index(output_dir)
    if found is None:
        return False
    # features of earlier releases lack what was added since
    changed = [key for key in index if key in found and found[key] != index[key]]
    if changed:
        raise ValueError(
            f"'{output_dir}' holds features of other data or settings ({', '.join(changed)} differ): "
            "choose another directory or delete this one"
        )
    return found["complete"]


def _is_finished(path: Path, settings: dict) -> bool:
    """Return whether an interrupted run of the same settings left this shard, which is there whole or not at all."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return file.metadata() == settings


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__
