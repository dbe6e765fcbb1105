"""Labelled tokens -> rows of features in sharded safetensors files, one forward pass of the target per response.

The feature of a token is the target's hidden state at the token itself, read by the same `StateReader` as in
generation; beside it, if asked for, numbers of the verification, computed by the function that serves them. Files are
written shard by shard, so a run that was killed goes on where it stopped, several processes share the work, and a
million tokens need not fit in memory. Knows nothing about heads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.files.durable import write_together
from hf_judge.files.jsonl import read_json_object
from hf_judge.head.compatibility import quantization_of
from hf_judge.head.config import HIDDEN_STATES, check_extra_features
from hf_judge.head.distributions import DRAFT_FEATURES, extra_features
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.responses import LabelledResponse, data_hash
from hf_judge.labelling.tokens import IGNORED, LabelReport, TokenLabels, label_rows
from hf_judge.upstream.devices import input_device
from hf_judge.upstream.forward import of_width, readable, vocabulary_rows
from hf_judge.upstream.states import StateReader

logger = logging.getLogger(__name__)

INDEX_NAME = "features.json"
FORMAT_VERSION = 2
SHARD_BYTES = 1 << 28
_INDEX_TYPES = {"shards": list, "rows": list, "complete": bool, "hidden_size": int, "hidden_state": str}
_SHARD_KEYS = {"file", "n_tokens"}


class FeatureStore:
    """Features on disk, read shard by shard.

    Args:
        directory: made by [`extract_features`].

    Raises:
        ValueError: there are no complete features.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.index = _read_index(self.directory)
        if self.index is None:
            raise ValueError(
                f"no features at '{directory}': {INDEX_NAME} is missing; make them with `hf-judge features`"
            )
        if not self.index["complete"]:
            raise ValueError(
                f"the features at '{directory}' are not complete: run the same command again to finish them"
            )

    @property
    def extra_features(self) -> list[str]:
        """Names of the numbers that are stored beside the states."""
        return self.index.get("extra_features") or []

    def width(self, *, draft: bool = False, extra: Sequence[str] = ()) -> int:
        """Width of the features that [`chunks`] yields with the same arguments."""
        return self.index["hidden_size"] + (self.index["draft_hidden_size"] if draft else 0) + len(extra)

    @property
    def n_tokens(self) -> int:
        return sum(shard["n_tokens"] for shard in self.index["shards"])

    def column(self, name: str) -> torch.Tensor:
        """A whole small column, `(n_tokens,)`: "labels" (int8), "matched" (bool: strict verification
        accepts the token anyway), "row" (int64, an index of `rows`) or "position"."""
        parts = []
        for shard in self.index["shards"]:
            with safe_open(self.directory / shard["file"], framework="pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int8)

    @property
    def rows(self) -> list[dict]:
        """Source, prompt hash and task of every row of the data."""
        return self.index["rows"]

    def chunks(
        self,
        *,
        chunk_tokens: int,
        draft: bool = False,
        extra: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Walk through all features.

        Args:
            chunk_tokens: at most this many at once.
            draft: with the draft's features before the target's.
            extra: of `extra_features`: with these numbers behind the target's features.
            generator: draws the order of shards and of chunks; None: in order.

        Yields:
            The numbers of the tokens `(n,)` long, and their features `(n, D)` float32. Only pages of the file that are
            being read are in memory.
        """
        shards, first = [], 0
        for shard in self.index["shards"]:
            shards.append((shard["file"], first, shard["n_tokens"]))
            first += shard["n_tokens"]
        names = [*(["draft_features"] if draft else []), "features", *(["extra_features"] if extra else [])]
        columns = [self.extra_features.index(name) for name in extra]
        for i in _order(len(shards), generator):
            file_name, first, n_tokens = shards[i]
            with safe_open(self.directory / file_name, framework="pt") as file:
                slices = [file.get_slice(name) for name in names]
                starts = range(0, n_tokens, chunk_tokens)
                for j in _order(len(starts), generator):
                    start, end = starts[j], min(starts[j] + chunk_tokens, n_tokens)
                    parts = [part[start:end].to(torch.float32) for part in slices]
                    if extra:
                        parts[-1] = parts[-1][:, columns]
                    yield torch.arange(first + start, first + end), parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@torch.no_grad()
def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[LabelledResponse],
    output_dir: str | os.PathLike,
    *,
    hidden_state: str = "post_norm",
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
        tokenizer: of the target.
        rows: the labelled responses.
        output_dir: where the shards go; a run that was interrupted goes on there. The processes of `accelerate launch`
            share the shards, which do not depend on how many processes there are.
        hidden_state: "post_norm" or "pre_norm", as in [`JudgeConfig`].
        after_mistake, on_cut_token, max_length: see [`label_rows`].
        batch_size: responses per forward; the logits of a whole batch are in memory at once.
        draft_model: also keep the draft's states (AutoJudge's DD-DT); it must read the same ids.
        extra: of `hf_judge.head.distributions.EXTRA_FEATURES`: also keep these numbers, from the logits of both models.
        shard_bytes: size of a shard, and about what is held in memory.
        names, strict: of rows that cannot be labelled, see [`label_rows`].

    Returns:
        The store, and the report of labels and skipped rows.

    Raises:
        ValueError: `output_dir` holds features of other data or settings; no token is labelled.
    """
    if hidden_state not in HIDDEN_STATES:
        raise ValueError(f"hidden_state must be one of {HIDDEN_STATES}, got {hidden_state!r}")
    extra = check_extra_features(extra)
    needing = [name for name in extra if name in DRAFT_FEATURES]
    if needing and draft_model is None:
        raise ValueError(f"the extra features {', '.join(needing)} come from the draft: pass draft_model as well")
    rows = list(rows)
    options = {"after_mistake": after_mistake, "on_cut_token": on_cut_token, "max_length": max_length}
    encoded, report = label_rows(rows, tokenizer, names=names, strict=strict, **options)
    if not encoded:
        raise ValueError(f"no labelled tokens: {report}")
    index = {
        "format_version": FORMAT_VERSION,
        "model": _name(model),
        "draft_model": None if draft_model is None else _name(draft_model),
        "hidden_state": hidden_state,
        "quantization": quantization_of(model),
        "hidden_size": model.config.get_text_config().hidden_size,
        "draft_hidden_size": None if draft_model is None else draft_model.config.get_text_config().hidden_size,
        "extra_features": extra or None,
        "data_hash": data_hash(rows),
        "tokens_hash": hashlib.sha256(repr([(t.input_ids, t.labels) for t in encoded]).encode()).hexdigest(),
        "options": options,
        "shard_bytes": shard_bytes,
        "rows": [{"source": row.source, "prompt": row.prompt_hash, "task_id": row.task_id} for row in rows],
        "shards": [],
        "complete": False,
    }
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if _is_complete(output_dir, index):
        return FeatureStore(output_dir), report
    state = processes(model)
    if state.is_main_process:
        write_together({output_dir / INDEX_NAME: json.dumps(index)})
    state.wait_for_everyone()
    settings = {"settings": hashlib.sha256(json.dumps(index).encode()).hexdigest()}
    plan = list(_plan(encoded, index))
    names = [f"features-{number:05d}.safetensors" for number in range(len(plan))]
    mine = list(zip(names, plan, strict=True))[state.process_index :: state.num_processes]
    todo = [(name, shard) for name, shard in mine if not _is_finished(output_dir / name, settings)]
    n_mine, n_todo = (sum(len(shard) for _, shard in shards) for shards in (mine, todo))
    bar = tqdm(
        total=n_mine, initial=n_mine - n_todo, desc="Features", unit="response", disable=not state.is_main_process
    )
    with bar, StateReader(model, hidden_state) as reader:
        for name, shard in todo:
            tensors = _shard_tensors(model, reader, shard, batch_size, draft_model, hidden_state, extra, bar)
            write_together({output_dir / name: safetensors_bytes(tensors, settings)})
    state.wait_for_everyone()
    if state.is_main_process:
        for name, shard in zip(names, plan, strict=True):
            n_tokens = sum(map(_n_labelled, shard))
            index["shards"].append({"file": name, "n_responses": len(shard), "n_tokens": n_tokens})
        index["complete"] = True
        write_together({output_dir / INDEX_NAME: json.dumps(index)})
    state.wait_for_everyone()
    return FeatureStore(output_dir), report


def _plan(encoded: list[TokenLabels], index: dict) -> Iterator[list[TokenLabels]]:
    """Consecutive responses that fill a shard each; does not depend on the batch size."""
    width = index["hidden_size"] + (index["draft_hidden_size"] or 0) + len(index["extra_features"] or [])
    room = max(1, index["shard_bytes"] // (4 * width))  # tokens
    shard, n_tokens = [], 0
    for tokens in encoded:
        n_labelled = _n_labelled(tokens)
        if shard and n_tokens + n_labelled > room:
            yield shard
            shard, n_tokens = [], 0
        shard.append(tokens)
        n_tokens += n_labelled
    if shard:
        yield shard


def _n_labelled(tokens: TokenLabels) -> int:
    return sum(label != IGNORED for label in tokens.labels)


def _shard_tensors(model, reader, shard, batch_size, draft_model, hidden_state, extra, bar) -> dict[str, torch.Tensor]:
    parts = {"features": [], "labels": [], "matched": [], "row": [], "position": []}
    if draft_model is not None:
        parts["draft_features"] = []
    if extra:
        parts["extra_features"] = []
    for start in range(0, len(shard), batch_size):
        batch = shard[start : start + batch_size]
        labels = _padded([t.labels for t in batch], IGNORED)
        kept = labels != IGNORED
        read = _read(model, reader, batch, kept)
        parts["features"].append(read.states)
        parts["matched"].append(read.matched)
        draft_logits = None
        if draft_model is not None:
            with StateReader(draft_model, hidden_state) as draft_reader:
                wanted = any(name in DRAFT_FEATURES for name in extra)
                drafted = _read(draft_model, draft_reader, batch, kept)
            parts["draft_features"].append(drafted.states)
            draft_logits = of_width(drafted.logits(kept), vocabulary_rows(model)) if wanted else None
        if extra:
            logits = read.logits(kept)
            ids = _padded([t.input_ids for t in batch], 0)[kept].to(logits.device)
            parts["extra_features"].append(extra_features(extra, logits, ids, draft_logits).cpu())
        parts["labels"].append(labels[kept].to(torch.int8))
        where = kept.nonzero()
        parts["row"].append(torch.tensor([t.row for t in batch])[where[:, 0]])
        parts["position"].append(where[:, 1] - torch.tensor([t.n_prompt for t in batch])[where[:, 0]])
        bar.update(len(batch))
    return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}


class _Read(NamedTuple):
    """What a model makes of a batch of responses."""

    states: torch.Tensor  # (n, D), of the labelled tokens, on the CPU
    matched: torch.Tensor  # (n,) bool: the model itself would have written the token
    all_logits: torch.Tensor  # (batch, longest, V)

    def logits(self, kept: torch.Tensor) -> torch.Tensor:
        """(n, V) float32, that the labelled tokens are predicted by."""
        return self.all_logits[:, :-1][kept[:, 1:].to(self.all_logits.device)].float()


def _read(model: PreTrainedModel, reader: StateReader, batch: list[TokenLabels], kept: torch.Tensor) -> _Read:
    """Run a model over responses whose `kept` tokens, (batch, longest) bool, are labelled.

    Rows are padded on the right: causal attention never looks there.
    """
    ids = readable(model, _padded([t.input_ids for t in batch], 0)).to(input_device(model))
    mask = _padded([[1] * len(t.input_ids) for t in batch], 0).to(input_device(model))
    outputs = model(**reader.request({"input_ids": ids, "attention_mask": mask, "use_cache": False}, {}))
    states = reader.read(outputs, ids.shape[1])[kept].cpu()
    # a token is predicted by the row before it; the first of a sequence is the prompt's and never labelled
    matched = (outputs.logits[:, :-1].argmax(dim=-1) == ids[:, 1:].to(outputs.logits.device)).cpu()
    return _Read(states, matched[kept[:, 1:]], outputs.logits)


def _padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [value] * (longest - len(sequence)) for sequence in sequences])


def _is_complete(output_dir: Path, index: dict) -> bool:
    """Whether a run of the same data and settings finished here."""
    found = _read_index(output_dir)
    if found is None:
        return False
    changed = [key for key in index if key not in ("shards", "complete") and found.get(key) != index[key]]
    if changed:
        raise ValueError(
            f"'{output_dir}' holds features of other data or settings ({', '.join(changed)} differ): "
            "choose another directory or delete this one"
        )
    return found["complete"]


def _is_finished(path: Path, settings: dict) -> bool:
    """Whether an interrupted run of the same settings left this shard; a shard is there as a whole or not at all."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return file.metadata() == settings


def _read_index(directory: Path) -> dict | None:
    path = directory / INDEX_NAME
    if not path.is_file():
        return None
    index = read_json_object(path)
    if index.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {index.get('format_version')!r} is not known, expected {FORMAT_VERSION}"
        )
    wrong = [key for key, kind in _INDEX_TYPES.items() if not isinstance(index.get(key), kind)]
    if wrong or any(not isinstance(shard, dict) or not shard.keys() >= _SHARD_KEYS for shard in index["shards"]):
        raise ValueError(
            f"{path} is damaged ({', '.join(wrong) or 'shards'} missing or of another type): make the features again"
        )
    return index


def _order(n: int, generator: torch.Generator | None) -> list[int]:
    return list(range(n)) if generator is None else torch.randperm(n, generator=generator).tolist()


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__
