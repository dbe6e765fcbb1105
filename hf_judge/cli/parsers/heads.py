"""Defines the options of the subcommands that make and publish heads: make, train, calibrate, push and search."""

from __future__ import annotations

from hf_judge.cli.options import (
    FROM_FILE_CHECKER,
    MODEL,
    TASK_NAME,
    add_batch_size,
    add_checker,
    add_depth,
    add_json,
    add_judge,
    add_max_new_tokens,
    add_num_assistant_tokens,
    add_output_dir,
    add_pair,
    add_problems,
    add_task,
    add_tasks,
)
from hf_judge.cli.terminal import natural, positive, share

# the same as in the modules of the library, which import torch; a test compares them
UNITS = ("prompt", "token")
MAKE = {"risk": 0.05, "margin": 0.01, "confidence": 0.95, "max_new_tokens": 512, "batch_size": 16, "max_prompts": 2000}
MAKE |= {"max_held_out": 200, "preflight_prompts": 20, "seed": 0}
# name: (type, default, what it is), for every field of JudgeTrainingArguments; a tuple takes several values
TRAINING = {
    "l2_grid": (float, (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5), "penalties on the weights; the strongest good one wins"),
    "validation_fraction": (float, 0.15, "share of the prompts that choose the penalty"),
    "calibration_fraction": (float, 0.25, "share of the prompts that is left for calibrate; 0: other data calibrate"),
    "mistake_weight": (
        float,
        None,
        "weight of a mistaken token relative to an acceptable one (default: both classes weigh the same)",
    ),
    "matched_weight": (float, 0.01, "weight of a token that both models chose, relative to another acceptable one"),
    "optimizer": (str, "auto", "lbfgs (exact), adamw (minibatches) or auto: lbfgs while --max-memory-gb is enough"),
    "max_iter": (int, 50, "iterations of lbfgs per penalty"),
    "num_train_epochs": (int, 5, "passes of adamw over the features"),
    "learning_rate": (float, 3e-3, "learning rate of adamw"),
    "train_batch_size": (int, 1024, "tokens in a minibatch of adamw"),
    "max_memory_gb": (float, 2.0, "gigabytes of features above which they are streamed from disk"),
    "extra_features": (str, (), "numbers of the verification that the head reads too (default: none)"),
    "threshold": (float, 0.5, "threshold of the saved head, from 0 to 1, until it is calibrated"),
    "rescue_window": (
        int,
        16,
        "a rescue is undone where one of the next N drafted tokens is corrected; 0: rescues stand",
    ),
    "seed": (int, 0, "seed of the split and of the minibatches"),
    "device": (str, None, "device of the fit, e.g. cpu or cuda:0 (default: a GPU if there is one)"),
    "plot": (bool, False, "draw the curves, as judge_curves.png"),
}


def add_make(commands) -> None:
    make = commands.add_parser(
        "make", help="make a judge for a pair: labels, fit, threshold, figures and card, in one command"
    )
    add_pair(
        make,
        target_help=f"the large model: {MODEL} (default: the embedded pair)",
        draft_help=f"the small model: {MODEL} (default: the embedded pair)",
        device_unset="the CPU",
    )
    add_depth(make)
    add_task(
        make,
        f"JSONL file of `prompt` and `answer` rows, or {TASK_NAME}; world: the embedded pair's own "
        "(default: world, where no --target is given)",
    )
    add_checker(make, FROM_FILE_CHECKER)
    add_problems(make, "all, 300 of the world")
    make.add_argument("--held-out", metavar="TASK", help="problems of the figures (default: a fifth of --task)")
    add_output_dir(make, "folder of the head; run again to go on after a stop", required=True)
    _add_settings(make)
    add_json(make, "write what every step found to this file")
    make.add_argument("--push", metavar="USER/REPO", help="publish the head on the Hub, after a look (default: do not)")
    make.add_argument("--yes", action="store_true", help="for --push: do not ask")
    make.set_defaults(run="judges.make:run_make")


def _add_settings(parser) -> None:
    def number(name: str, kind, metavar: str, text: str) -> None:
        default = MAKE[name.replace("-", "_")]
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)

    number("risk", float, "R", "share of mistakes that the judge may accept, from 0 to 1")
    number("margin", share, "M", "loss of accuracy, from 0 to 1, that is allowed where labels are too few")
    number("confidence", float, "C", "confidence of both statements, from 0 to 1")
    parser.add_argument(
        "--thresholds", type=float, nargs="+", metavar="T", help="candidate thresholds from 0 to 1 (default: ten)"
    )
    parser.add_argument("--certify", action="store_true", help="demand that the bound on lost answers is within M")
    add_max_new_tokens(parser, MAKE["max_new_tokens"])
    add_num_assistant_tokens(parser, None, "what the first look finds best")
    add_batch_size(parser, MAKE["batch_size"], "answers (one in the last measurement)")
    number("max-prompts", positive, "N", "label at most so many prompts")
    number("max-held-out", positive, "N", "measure at most so many held-out problems")
    number("preflight-prompts", positive, "N", "prompts of the first look")
    number("seed", natural, "S", "seed of the division of the problems")
    parser.add_argument("--force", action="store_true", help="go on where a check says that it is of no use")


def add_train(commands) -> None:
    train = commands.add_parser("train", help="fit a head to features")
    train.add_argument("--features", required=True, metavar="DIR", help="folder that `hf-judge features` filled")
    add_output_dir(train, "folder of the head, its metrics and its plot", required=True)
    for name, (kind, default, text) in TRAINING.items():
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            train.add_argument(flag, action="store_true", help=text)
        else:
            several = {"nargs": "+"} if isinstance(default, tuple) else {}
            metavar = {int: "N", float: "X", str: "NAME"}[kind]
            train.add_argument(flag, type=kind, default=default, metavar=metavar, help=text, **several)
    train.set_defaults(run="judges.train:run_train")


def add_calibrate(commands) -> None:
    calibrate = commands.add_parser("calibrate", help="choose the threshold with a stated risk")
    add_judge(calibrate, "folder of the head of `hf-judge train`, which gets the threshold", required=True)
    calibrate.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        metavar="T",
        help="candidates from 0 to 1 (default: 20 by risk, 10 by task)",
    )
    calibrate.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="confidence of the bounds, from 0 to 1"
    )
    risk = calibrate.add_argument_group("by risk: at most this share of mistakes is accepted")
    risk.add_argument(
        "--features", metavar="DIR", help="folder of labelled tokens, without those the fit saw (default: by task)"
    )
    risk.add_argument("--risk", type=float, default=0.05, metavar="R", help="share of accepted mistakes, from 0 to 1")
    risk.add_argument("--unit", choices=UNITS, default="prompt", help="unit of independent mistakes")
    task = calibrate.add_argument_group("by task: answers as right as the target's, up to a margin")
    task.add_argument(
        "--margin", type=share, metavar="M", help="allowed loss of accuracy, from 0 to 1, e.g. 0.01 (default: by risk)"
    )
    task.add_argument(
        "--certify", action="store_true", help="demand that the bound on lost answers, not only the loss, is within M"
    )
    add_num_assistant_tokens(task, 32)
    task.add_argument("--strict", action="store_true", help="stop at a prompt that the models refuse")
    add_pair(task)
    add_tasks(task, required=False)
    calibrate.set_defaults(run="judges.train:run_calibrate")


def add_push(commands) -> None:
    push = commands.add_parser("push", help="publish a judge head with a card, and an entry for custom_generate")
    push.add_argument("head", metavar="DIR", help="folder of the head")
    push.add_argument("repo_id", metavar="USER/REPO", help="repository on the Hub")
    push.add_argument("--base", metavar="ID", help="Hub id of the target (default: the one that the head names)")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch to write to (default: main)")
    push.add_argument("--commit-message", metavar="TEXT", help="message of the commit (default: Publish a judge head)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of writing to the branch")
    push.add_argument(
        "--base-unknown",
        action="store_true",
        help="publish a head of a local or private target: the card says that its commit is unknown",
    )
    push.add_argument(
        "--dry-run", action="store_true", help="send nothing: write the repository and the card's page to a folder"
    )
    add_output_dir(push, "folder of the dry run", default="dry-run")
    push.set_defaults(run="judges.publish:run_push")


def add_search(commands) -> None:
    search = commands.add_parser("search", help="list the published judge heads for a target")
    search.add_argument("target", metavar="TARGET", help="the target's repository on the Hub, as user/repo")
    search.add_argument("--limit", type=positive, default=20, metavar="N", help="most heads to list")
    add_json(search, "write the list to this file")
    search.set_defaults(run="judges.publish:run_search")
