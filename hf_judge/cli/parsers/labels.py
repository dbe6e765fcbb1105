"""Defines the options of the subcommands about labelled data: mine, import, features and info."""

from __future__ import annotations

import argparse

from hf_judge.cli.options import (
    MODEL,
    add_batch_size,
    add_draft,
    add_json,
    add_loading,
    add_output,
    add_output_dir,
    add_pair,
    add_target,
    add_tasks,
)
from hf_judge.cli.terminal import above_zero, natural, positive

# the same as in the modules of the library, which import torch; a test compares them
FORMATS = ("prm800k", "processbench", "math-shepherd", "prmbench", "trl", "ragtruth", "tokenhd", "autojudge")
HIDDEN_STATES = ("post_norm", "pre_norm")
STATES_OF = ("token", "before")
EXTRA_FEATURES = ("target_log_prob", "entropy", "margin", "draft_log_prob", "kl")
DRAFT_FEATURES = ("draft_log_prob", "kl")
AFTER_MISTAKE = ("ignore", "mistaken")
ON_CUT_TOKEN = ("mistaken", "skip")

RESUMES = "run again to go on after a stop"


def add_mine(commands) -> None:
    mine = commands.add_parser("mine", help="label responses without people")
    mine.add_argument(
        "--source",
        choices=("swap", "draft"),
        default="swap",
        help="swap the draft's tokens into the target's answers, or label the draft's own answers with --locate",
    )
    add_pair(mine, draft_required=True, target_help=f"the large model: {MODEL}; --source swap needs it")
    add_tasks(mine)
    add_output(mine, f"JSONL file of labelled responses; {RESUMES}")
    mine.add_argument(
        "--locate", metavar="MODULE:FUNCTION", help="for --source draft, which needs it: finds the first mistake"
    )
    mine.add_argument(
        "--num-samples", type=positive, default=1, metavar="N", help="for --source draft: answers per prompt"
    )
    mine.add_argument(
        "--num-repairs",
        type=natural,
        default=0,
        metavar="N",
        help="for --source draft: mistakes per answer that --target replaces before the draft goes on",
    )
    mine.add_argument(
        "--temperature",
        type=above_zero,
        default=1.0,
        metavar="T",
        help="for --source draft: sampling temperature of answers 2..N",
    )
    mine.add_argument(
        "--label-matched",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for --source swap: label tokens that both models chose too (default: yes)",
    )
    mine.add_argument("--seed", type=int, default=0, metavar="S", help="for --source draft: seed of the samples")
    mine.add_argument("--strict", action="store_true", help="stop at a prompt that the models or the checker refuse")
    mine.add_argument(
        "--force",
        action="store_true",
        help="for --source swap: label even where the first answers look wrong, without looking at them",
    )
    mine.set_defaults(run="judges.label:run_mine")


def add_import(commands) -> None:
    parser = commands.add_parser("import", help="make labelled responses of labels that exist")
    parser.add_argument("format", choices=sorted(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="files, saved datasets, or datasets on the Hub as user/name:split (default: the format's own on the Hub)",
    )
    add_output(parser, "JSONL file of labelled responses")
    parser.add_argument(
        "--tokenizer",
        metavar="ID",
        help=f"tokenizer of the labelled tokens: {MODEL}; tokenhd and autojudge need it (default: none)",
    )
    parser.add_argument(
        "--step-separator", metavar="TEXT", help="what stands between two steps (default: as in the dataset)"
    )
    parser.add_argument("--max-rows", type=positive, metavar="N", help="write at most N examples (default: all)")
    parser.add_argument(
        "--balanced", action="store_true", help="of each source as many examples with a mistake as without"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="selects the examples")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of the dataset on the Hub (default: main)"
    )
    add_json(parser, "write all counts, and what could not be lined up, to this file")
    parser.set_defaults(run="judges.label:run_import")


def add_features(commands) -> None:
    features = commands.add_parser("features", help="run the target over labelled responses")
    add_target(features, required=True)
    add_draft(features, f"the small model, for the extra features {' and '.join(DRAFT_FEATURES)}: {MODEL}")
    features.add_argument(
        "--tokenizer", metavar="ID", help=f"the target's tokenizer: {MODEL} (default: the one beside the target)"
    )
    features.add_argument(
        "--draft-tokenizer", metavar="ID", help=f"the draft's tokenizer: {MODEL} (default: the one beside the draft)"
    )
    add_loading(features)
    features.add_argument("--data", required=True, nargs="+", metavar="PATH", help="JSONL files or saved datasets")
    add_output_dir(features, f"folder of shards; {RESUMES}", required=True)
    features.add_argument("--hidden-state", choices=HIDDEN_STATES, default="post_norm", help="state to keep")
    features.add_argument(
        "--state",
        choices=STATES_OF,
        default="token",
        help="state at the token itself, for a judge (default: token), or before it, for the rule diversed",
    )
    features.add_argument(
        "--extra-features",
        nargs="+",
        default=(),
        choices=EXTRA_FEATURES,
        metavar="NAME",
        help=f"also keep numbers of the verification: {', '.join(EXTRA_FEATURES)} (default: none)",
    )
    features.add_argument(
        "--after-mistake", choices=AFTER_MISTAKE, default="ignore", help="label of tokens after the first mistake"
    )
    features.add_argument(
        "--on-cut-token", choices=ON_CUT_TOKEN, default="mistaken", help="what to do where a span cuts a word"
    )
    features.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="skip responses of more tokens, prompt included (default: skip none)",
    )
    add_batch_size(features, 8, "responses")
    features.add_argument("--skip-errors", action="store_true", help="skip broken lines instead of stopping")
    features.add_argument("--strict", action="store_true", help="stop at a response that cannot be labelled")
    features.set_defaults(run="judges.train:run_features")


def add_info(commands) -> None:
    info = commands.add_parser("info", help="show what is in labelled data, features or a head")
    info.add_argument("path", help="JSONL of labelled responses, a folder of features, or a head (also on the Hub)")
    info.add_argument("--revision", metavar="REV", help="branch, tag or commit of a head on the Hub (default: main)")
    info.add_argument(
        "--tokenizer", metavar="ID", help=f"also count tokens of both classes with it: {MODEL} (default: do not count)"
    )
    info.add_argument("--samples", type=natural, default=3, metavar="N", help="mistakes to show")
    info.set_defaults(run="judges.label:run_info")
