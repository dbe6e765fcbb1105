"""Import labels: foreign records in, labelled responses out, with counts and a list of what could not be lined up."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hf_judge.files.durable import check_writable
from hf_judge.files.jsonl import listed
from hf_judge.importing.formats import FORMATS, Format
from hf_judge.importing.read import read_records
from hf_judge.importing.records import Unmatched, WrongFormat
from hf_judge.importing.spans import ragtruth_prompts
from hf_judge.labelling.responses import LabelledResponse, data_hash, summarise, write_jsonl


@dataclass
class ImportReport:
    """Counts what an import found."""

    name: str  # of the format
    n_records: int = 0  # records that were read
    n_examples: int = 0  # examples that were made, before sampling
    n_doubles: int = 0  # examples that stood there before
    skipped: Counter = field(default_factory=Counter)  # records that could not be lined up, by reason
    skipped_records: list[tuple[str, str]] = field(default_factory=list)  # name of the record, and the reason
    sources: dict = field(default_factory=dict)  # counts of what was written, see `summarise`
    data_hash: str = ""  # SHA-256 of the examples that were written

    def __str__(self) -> str:
        made_by, written = FORMATS[self.name], self.sources.get("all", {"rows": 0, "with_mistakes": 0})
        lines = [
            f"{self.name}: {made_by.url}, licence: {made_by.licence}; labelled by {made_by.labelled_by}",
            f"{self.n_records} records gave {self.n_examples} examples ({self.n_doubles} doubles left out); "
            f"{written['rows']} written, {written['with_mistakes']} with a mistake",
        ]
        lines += [
            f"  {source}: {count['rows']} examples, {count['prompts']} prompts, {count['with_mistakes']} with a mistake"
            for source, count in self.sources.items()
            if source != "all"
        ]
        if self.skipped:
            lines.append(f"{sum(self.skipped.values())} records could not be lined up:")
            lines += [f"  {n} x {why}" for why, n in self.skipped.most_common()]
            lines += ["of these:", *listed(self.skipped_records)]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return all counts as JSON values."""
        made_by = FORMATS[self.name]
        return {
            "format": self.name,
            "url": made_by.url,
            "licence": made_by.licence,
            "labelled_by": made_by.labelled_by,
            "records": self.n_records,
            "examples": self.n_examples,
            "doubles": self.n_doubles,
            "written": self.sources,
            "not_lined_up": dict(self.skipped.most_common()),
            "not_lined_up_records": [list(pair) for pair in self.skipped_records],
            "data_hash": self.data_hash,
        }


@dataclass(frozen=True)
class Sample:
    """Says which of the imported examples are written.

    Args:
        max_rows: largest number of examples, drawn at random; None: all.
        balanced: whether each source gets as many examples with a mistake as without.
        seed: seed of the draw, which does not depend on the order of the records.

    Raises:
        ValueError: the number is below 1.
    """

    max_rows: int | None = None
    balanced: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")

    def draw(self, examples: dict[str, LabelledResponse]) -> list[LabelledResponse]:
        """Draw examples, by hashes of their contents: the same ones in whatever order they came, in their old order.

        Balanced: from each source as many with a mistake as without, and as evenly from all sources as they allow.

        Args:
            examples: examples by these hashes.

        Raises:
            ValueError: no balanced sample can be drawn.
        """
        order = sorted(examples, key=lambda key: hashlib.sha256(f"{self.seed}/{key}".encode()).digest())
        if self.balanced:
            groups = {}
            for key in order:
                row = examples[key]
                groups.setdefault(row.source, {True: [], False: []})[bool(row.mistakes)].append(key)
            pairs = [list(zip(group[True], group[False], strict=False)) for group in groups.values()]
            longest = max(map(len, pairs))
            turns = [own[turn] for turn in range(longest) for own in pairs if turn < len(own)]
            if self.max_rows is not None:
                turns = turns[: self.max_rows // 2]
            order = [key for pair in turns for key in pair]
            if not order:
                raise ValueError(
                    "no balanced sample: no source has examples both with and without a mistake, or max_rows is "
                    "below 2; leave --balanced out"
                )
        chosen = set(order if self.max_rows is None else order[: self.max_rows])
        return [example for key, example in examples.items() if key in chosen]


def import_labels(
    name: str,
    sources: Sequence[str],
    output: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sample: Sample | None = None,
    revision: str | None = None,
    step_separator: str | None = None,
) -> ImportReport:
    """Read a dataset of labels and write its examples as JSONL.

    Args:
        name: format, a key of [`FORMATS`].
        sources: files or datasets, see [`read_records`]; none: the format's own on the Hub. RAGTruth takes
            response.jsonl and source_info.jsonl.
        output: JSONL file of labelled responses.
        tokenizer: tokenizer of the labelled tokens, for formats that label tokens.
        sample: which examples to write; None: all.
        revision: revision of datasets on the Hub.
        step_separator: text between two steps, for formats of steps; None: the one of the dataset's authors.

    Raises:
        ValueError: the format is unknown or lacks what it needs, a file is broken, or no record could be lined up.
    """
    made_by = _checked_format(name, sources, tokenizer, step_separator)
    check_writable(output)
    read, sources = _reader(made_by, list(sources) or [made_by.hub_id], tokenizer)
    if step_separator is not None:
        read = functools.partial(read, between=step_separator)
    report, examples = ImportReport(name), {}
    for record_name, record in (pair for source in sources for pair in read_records(source, revision=revision)):
        for example in _examples(read, record_name, record, report):
            report.n_examples += 1
            key = data_hash([example])
            report.n_doubles += key in examples
            examples[key] = example
    if not examples:
        reasons = "; ".join(f"{n} x {why}" for why, n in report.skipped.most_common(3))
        raise ValueError(
            f"nothing to import: none of {report.n_records} records could be lined up ({reasons or 'there are none'})"
        )
    chosen = (sample or Sample()).draw(examples)
    write_jsonl(chosen, output)
    report.sources, report.data_hash = summarise(chosen), data_hash(chosen)
    return report


def _checked_format(name: str, sources: Sequence[str], tokenizer: object, step_separator: str | None) -> Format:
    """Return a format that has all that it needs.

    Raises:
        ValueError: the format is unknown, or something is missing or out of place.
    """
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}: there are {', '.join(FORMATS)}")
    made_by = FORMATS[name]
    if made_by.needs_tokenizer and tokenizer is None:
        raise ValueError(
            f"the labels of {name} are of tokens, which need their tokenizer: pass --tokenizer "
            f"({made_by.needs_tokenizer})"
        )
    if not sources and made_by.hub_id is None:
        raise ValueError(f"{name} is read from files: pass them (they are at {made_by.url})")
    if step_separator is not None and not made_by.of_steps:
        raise ValueError(f"{name} has no steps: leave --step-separator out")
    return made_by


def _examples(read: Callable, record_name: str, record: dict, report: ImportReport) -> Iterator[LabelledResponse]:
    """Yield the examples of a record; count the record where they cannot be lined up.

    Raises:
        ValueError: the record is not of this format.
    """
    report.n_records += 1
    try:
        yield from list(read(record))  # all of a record or nothing
    except Unmatched as error:
        report.skipped[str(error)] += 1
        report.skipped_records.append((record_name, str(error)))
    except WrongFormat as error:
        raise ValueError(
            f"{record_name}: {error}; is this a file of {report.name} ({FORMATS[report.name].url})?"
        ) from None


def _reader(made_by: Format, sources: list[str], tokenizer) -> tuple[Callable, list[str]]:
    """Return the function that reads a record, and the sources that hold the records.

    Raises:
        ValueError: the format needs two files, and they are not there.
    """
    if made_by.second_file is not None:
        second = [source for source in sources if Path(source).name == made_by.second_file]
        first = [source for source in sources if source not in second]
        if len(second) != 1 or not first:
            raise ValueError(f"pass the responses and {made_by.second_file}, got {', '.join(sources)}")
        prompts = {}
        for record_name, record in read_records(second[0]):
            try:
                source_id, found = ragtruth_prompts(record)
            except (Unmatched, WrongFormat) as error:
                raise ValueError(f"{record_name}: {error}") from None
            prompts[source_id] = found
        return lambda record: made_by.read(record, prompts), first
    if made_by.needs_tokenizer:
        return lambda record: made_by.read(record, tokenizer), sources
    return made_by.read, sources
