"""List the datasets of labels that can be imported: where each comes from, its licence and its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_judge.importing import spans, steps
from hf_judge.labelling.responses import LabelledResponse


class Format(NamedTuple):
    """Says where labels come from and how a record is read."""

    read: Callable[..., Iterator[LabelledResponse]]  # takes a record, and the tokenizer where the format needs it
    url: str
    licence: str  # as its authors state it
    labelled_by: str
    hub_id: str | None = None  # dataset on the Hub that is read where no file is given
    needs_tokenizer: str | None = None  # whose tokens the labels are of; None: of text
    second_file: str | None = None  # a file that must be given too

    @property
    def of_steps(self) -> bool:
        """Whether whole steps are labelled."""
        return self.needs_tokenizer is None and self.second_file is None


FORMATS = {
    "prm800k": Format(
        steps.prm800k,
        "https://github.com/openai/prm800k",
        "MIT",
        "people, every step of a solution",
    ),
    "processbench": Format(
        steps.processbench,
        "https://huggingface.co/datasets/Qwen/ProcessBench",
        "Apache-2.0",
        "people, the first wrong step",
        hub_id="Qwen/ProcessBench",
    ),
    "math-shepherd": Format(
        steps.math_shepherd,
        "https://huggingface.co/datasets/peiyi9979/Math-Shepherd",
        "none stated on its card",
        "completions of a model, every step",
        hub_id="peiyi9979/Math-Shepherd",
    ),
    "prmbench": Format(
        steps.prmbench,
        "https://huggingface.co/datasets/hitsmy/PRMBench_Preview",
        "Apache-2.0",
        "a model that put mistakes into right solutions, checked by people",
        hub_id="hitsmy/PRMBench_Preview",
    ),
    "trl": Format(
        steps.trl,
        "https://huggingface.co/docs/trl/dataset_formats",
        "that of the dataset",
        "whoever made the dataset",
    ),
    "ragtruth": Format(
        spans.ragtruth,
        "https://github.com/ParticleMedia/RAGTruth",
        "MIT",
        "people, spans that the sources do not support",
        second_file="source_info.jsonl",
    ),
    "tokenhd": Format(
        spans.tokenhd,
        "https://huggingface.co/datasets/mr233/TokenHD-training-data",
        "MIT",
        "two language models, every token",
        hub_id="mr233/TokenHD-training-data",
        needs_tokenizer="Qwen/Qwen3-1.7B",
    ),
    "autojudge": Format(
        spans.autojudge,
        "https://huggingface.co/datasets/mightyneighbor/AutoJudge",
        "MIT",
        "swaps of the draft's tokens into the target's answers",
        needs_tokenizer="that of the target",
    ),
}
