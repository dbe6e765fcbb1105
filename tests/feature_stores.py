"""Feature stores made of given tensors, without a model."""

import json

import torch
from safetensors.torch import save_file

from hf_judge.training.store import FORMAT_VERSION, INDEX_NAME, FeatureStore


def make_store(directory, features, labels, row, prompts, *, sources=None, n_shards=3, extra=None, matched=None):
    """A store of `features` (n, D), `labels` (n,) and `row` (n,), the row of each token; `prompts` names each row's.

    `matched` (n,): which tokens strict verification accepts; none by default.
    `extra`: names of extra features -> their values (n,).
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    for i, part in enumerate(torch.arange(len(labels)).chunk(n_shards)):
        tensors = {
            "features": features[part].contiguous(),
            "labels": labels[part].to(torch.int8).contiguous(),
            "matched": torch.zeros(len(part), dtype=torch.bool) if matched is None else matched[part].contiguous(),
            "row": row[part].contiguous(),
            "position": torch.zeros(len(part), dtype=torch.int64),
        }
        if extra is not None:
            tensors["extra_features"] = torch.stack(list(extra.values()), dim=1)[part].contiguous()
        name = f"features-{i:05d}.safetensors"
        save_file(tensors, directory / name)
        shards.append({"file": name, "n_responses": 1, "n_tokens": len(part)})
    sources = sources or ["made"] * len(prompts)
    index = {
        "format_version": FORMAT_VERSION,
        "model": "a/target",
        "draft_model": None,
        "hidden_state": "post_norm",
        "hidden_size": features.shape[1],
        "extra_features": None if extra is None else list(extra),
        "data_hash": "0" * 64,
        "options": {"after_mistake": "ignore"},
        "rows": [{"source": s, "prompt": p, "task_id": None} for s, p in zip(sources, prompts, strict=True)],
        "shards": shards,
        "complete": True,
    }
    (directory / INDEX_NAME).write_text(json.dumps(index))
    return FeatureStore(directory)


def separable(n_rows=60, tokens_per_row=20, width=12, *, seed=0, mistaken=0.1, noise=1.0, scale=None):
    """Features along whose first axis mistakes lie lower, with widely different scales and offsets per axis.

    Returns:
        features (n, D), labels (n,), row (n,), prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    n = n_rows * tokens_per_row
    labels = (torch.rand(n, generator=generator) >= mistaken).long()
    features = torch.randn(n, width, generator=generator) * noise
    features[:, 0] += 3.0 * labels
    spread = torch.logspace(-2, 3, width) if scale is None else torch.full((width,), scale)
    features = features * spread + 10 * spread
    row = torch.arange(n_rows).repeat_interleave(tokens_per_row)
    return features, labels, row, [f"{i:016x}" for i in range(n_rows)]
