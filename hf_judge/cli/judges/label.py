"""Define the subcommands about labelled data: mine, which makes it, and info, which shows it, features or a head."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_judge.checking.correctness import imported
from hf_judge.cli.inputs import checker_of, load_model, load_pair_tokenizers, read_tasks, tell_fewer, write_json
from hf_judge.cli.terminal import printable, warn
from hf_judge.evaluation.loading import load_tokenizer
from hf_judge.files.jsonl import read_json_object
from hf_judge.head.files import CONFIG_NAME
from hf_judge.head.hub import is_hub_id
from hf_judge.head.judge_head import JudgeHead
from hf_judge.importing.run import Sample, import_labels
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.jobs import MiningReport, processes
from hf_judge.labelling.prompts import RefusedPrompt, prompt_of
from hf_judge.labelling.responses import HOLDS, hash_prompt, load_rows, marked, summarise
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.labelling.tokens import label_rows
from hf_judge.making.preflight import CannotPay, preflight
from hf_judge.making.settings import MakeSettings
from hf_judge.tasks.named import find_named
from hf_judge.tasks.problems import Problems
from hf_judge.training.fit import METRICS_NAME
from hf_judge.training.metrics import described
from hf_judge.training.store import INDEX_NAME, FeatureStore

# --- mine -----------------------------------------------------------------------------------------------------------


def run_mine(args: argparse.Namespace) -> None:
    named = find_named(args.task)
    checker = checker_of(args, named) if args.source == "swap" else None
    tasks, names = read_tasks(args.task, named)
    tell_fewer(args.problems, len(tasks), args.task)
    tasks, names = tasks[: args.problems or None], names[: args.problems or None]
    _keep_other_labels(args.output, tasks)
    report = _mine_swaps(args, tasks, names, checker) if checker else _mine_drafts(args, tasks, names)
    if processes().is_main_process:
        print(f"{args.output}: {report}")
        if args.source == "swap" and not report.counts["swaps undone"]:
            warn(["no swap changed an answer: there is no mistake to train on; pass harder prompts, or more of them"])


def _keep_other_labels(path: str, tasks: list[dict]) -> None:
    """Refuse to replace the labels of other prompts; with more prompts a run goes on.

    Raises:
        ValueError: the file holds labels of prompts that are not among these.
    """
    if not Path(path).is_file():
        return
    asked = {hash_prompt(prompt_of(task).content) for task in tasks}
    n_others = len({row.prompt_hash for row in load_rows(path)} - asked)
    if n_others:
        raise ValueError(
            f"'{path}' holds labels of {n_others} prompts that are not among these {len(tasks)}, and would lose them: "
            "choose another --output, add the prompts, or delete the file"
        )


def _look_first(args: argparse.Namespace, tasks: list[dict], names: list[str], checker, models) -> None:
    """Let both models answer the first prompts, and stop where the labels would be nonsense.

    Raises:
        CannotPay: they would; `--force` goes on.
    """
    if args.force or Path(f"{args.output}.journal").is_dir() or processes().num_processes > 1:
        return  # an earlier run has looked
    target, draft, tokenizer = models
    n = MakeSettings.preflight_prompts
    first = Problems("prompts", tasks[:n], checker, names[:n])
    try:
        looked = preflight(
            target, draft, tokenizer, first, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
        )
    except RefusedPrompt:  # all of them: the labelling says so, or goes on with the others
        return
    for line in looked.lines():
        print(printable(line), flush=True)
    faults = looked.faults()
    if faults:
        raise CannotPay(f"{faults[0]} --force labels all the same")


def _mine_drafts(args: argparse.Namespace, tasks: list[dict], names: list[str]) -> MiningReport:
    if args.locate is None:
        raise ValueError("--source draft needs --locate module:function, which finds the first mistake")
    locate, repairs = imported(args.locate), bool(args.num_repairs and args.target)
    tokenizer = load_pair_tokenizers(args)[0] if repairs else load_tokenizer(args.draft_tokenizer or args.draft)
    return label_drafts(
        load_model(args.draft, args),
        tokenizer,
        tasks,
        locate,
        args.output,
        target=load_model(args.target, args) if repairs else None,
        num_repairs=args.num_repairs,
        num_samples=args.num_samples,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        names=names,
        strict=args.strict,
    )


def _mine_swaps(args: argparse.Namespace, tasks: list[dict], names: list[str], checker) -> MiningReport:
    if args.target is None:
        raise ValueError("--source swap needs --target")
    tokenizer = load_pair_tokenizers(args)[0]
    draft, target = load_model(args.draft, args), load_model(args.target, args)
    _look_first(args, tasks, names, checker, (target, draft, tokenizer))
    return mine_swaps(
        target,
        draft,
        tokenizer,
        tasks,
        checker,
        args.output,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        label_matched=args.label_matched,
        names=names,
        strict=args.strict,
    )


# --- import ---------------------------------------------------------------------------------------------------------


def run_import(args: argparse.Namespace) -> None:
    report = import_labels(
        args.format,
        args.data,
        args.output,
        tokenizer=load_tokenizer(args.tokenizer) if args.tokenizer else None,
        sample=Sample(args.max_rows, args.balanced, args.seed),
        revision=args.revision,
        step_separator=args.step_separator,
    )
    print(printable(f"{args.output}: {report}"))
    write_json(args.json, report.to_dict())


# --- info -----------------------------------------------------------------------------------------------------------


# a missing file of these is no repository on the Hub
FILE_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".safetensors"}


def run_info(args: argparse.Namespace) -> None:
    path = Path(args.path)
    if (path / CONFIG_NAME).is_file():
        _head_info(path)
    elif (path / INDEX_NAME).is_file():
        _features_info(path)
    elif path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"'{path}' is an empty folder: expected labelled JSONL, a features directory or a judge head")
    elif path.exists():
        _data_info(path, args)
    elif "/" in args.path and is_hub_id(args.path) and path.suffix not in FILE_SUFFIXES:
        _head_info(args.path, args.revision)
    else:
        raise ValueError(
            f"'{path}' is no file, directory or Hub repository: pass labelled JSONL, a features directory or a judge "
            "head (also user/repo on the Hub)"
        )


def _data_info(path: Path, args: argparse.Namespace) -> None:
    rows = load_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no rows: expected JSONL, each line {HOLDS}")
    for source, count in summarise(rows).items():
        share = count["mistaken_characters"] / max(count["characters"], 1)
        print(
            f"{source}: {count['rows']} responses to {count['prompts']} prompts, {count['with_mistakes']} with a "
            f"mistake, {count['characters']} characters ({share:.2%} mistaken)"
        )
    if args.tokenizer:
        _, report = label_rows(rows, load_tokenizer(args.tokenizer))
        print(f"tokens: {report}")
    for row in [row for row in rows if row.mistakes][: args.samples]:
        print(f"\n{printable(marked(row))}")


def _features_info(path: Path) -> None:
    store = FeatureStore(path)
    labels, index = store.column("labels"), store.index
    print(
        f"{store.n_tokens} tokens x {widths(store)} ('{index['hidden_state']}' of {index['model']}, draft: "
        f"{index['draft_model']}) in {len(index['shards'])} shards: {int((labels == 1).sum())} acceptable, "
        f"{int((labels == 0).sum())} mistaken, from {len({row['prompt'] for row in store.rows})} prompts"
    )


def widths(store: FeatureStore) -> str:
    """Describe a token's features, e.g. "256 + entropy": the width of the target's state, and the extra features."""
    return " + ".join([str(store.index["hidden_size"]), *store.extra_features])


def _head_info(path: Path | str, revision: str | None = None) -> None:
    head = JudgeHead.from_pretrained(path, revision=revision)
    config = head.config
    target = f"{config.base_model_name_or_path} at {config.revision or 'an unnamed commit'}"
    print(
        f"judge head for {printable(target)}: {config.hidden_size} '{config.hidden_state}' features"
        f"{''.join(f' + {name}' for name in config.extra_features)}, threshold {config.threshold:g}, quantisation of "
        f"the target: {printable(config.quantization or 'not known')}"
    )
    known = f"known by {len(config.fingerprint)} matrices" if config.fingerprint else "known by its name alone"
    print(f"target {known}; draft: {printable(config.draft_name_or_path or 'not known')}")
    if head.source:
        print(head.source)
    print(printable(json.dumps(config.provenance, indent=2)))
    metrics = Path(path) / METRICS_NAME
    if metrics.is_file():
        print(f"held-out prompts: {_held_out(metrics)} ({METRICS_NAME} has the curves)")


def _held_out(path: Path) -> str:
    """Describe the figures of `hf-judge train`.

    Raises:
        ValueError: the file holds something else.
    """
    metrics = read_json_object(path)
    if isinstance(metrics.get("auc"), float | int):  # written by releases up to 0.1, which gave one of the two
        return f"AUC {metrics['auc']:.4f} over all labelled tokens"
    try:
        return described(metrics)
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"{path} holds no AUC: it was not written by `hf-judge train`") from None
