"""Define the subcommands that make a head from labelled data: features, train, calibrate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import typing
from pathlib import Path

from hf_judge.cli.label import add_import, add_info, add_mine, widths
from hf_judge.cli.options import add_pair, add_tasks, load_model
from hf_judge.cli.terminal import positive, share, warn
from hf_judge.evaluation.evaluate import Decoding, JudgedAnswers, Pair, right_answers
from hf_judge.evaluation.loading import load_tokenizer, load_tokenizers
from hf_judge.files.jsonl import listed
from hf_judge.head.config import HIDDEN_STATES
from hf_judge.head.distributions import DRAFT_FEATURES, EXTRA_FEATURES
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.responses import HOLDS, load_named
from hf_judge.labelling.tokens import AFTER_MISTAKE, ON_CUT_TOKEN
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.load import load_task
from hf_judge.tasks.named import is_named
from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.calibration import (
    TASK_THRESHOLDS,
    UNITS,
    AccuracyCertificate,
    RiskCertificate,
    answers_needed,
    apply_certificate,
    calibrate_by_accuracy,
    calibrate_by_risk,
    check_confidence,
    check_margin,
    check_tells_apart,
    check_thresholds,
)
from hf_judge.training.extraction import STATES_OF, extract_features
from hf_judge.training.fit import PROMPTS_NAME, train_judge
from hf_judge.training.metrics import THRESHOLDS, described
from hf_judge.training.store import FeatureStore

logger = logging.getLogger(__name__)


def add_training_commands(commands) -> None:
    """Add the subcommands that make a judge to the parser, in the order of their use."""
    for add in (add_mine, add_import, add_features, add_train, add_calibrate, add_info):
        add(commands)


# --- features -------------------------------------------------------------------------------------------------------


def add_features(commands) -> None:
    features = commands.add_parser("features", help="run the target over labelled responses")
    needing = " and ".join(DRAFT_FEATURES)
    add_pair(features, target_required=True, draft_help=f"the small model, for the extra features {needing}")
    features.add_argument("--data", required=True, nargs="+", metavar="PATH", help="JSONL files or saved datasets")
    features.add_argument("--output", required=True, metavar="DIR", help="directory of shards; rerun to resume")
    features.add_argument(
        "--hidden-state", choices=HIDDEN_STATES, default="post_norm", help="state to keep (default: post_norm)"
    )
    features.add_argument(
        "--state",
        choices=STATES_OF,
        default="token",
        help="state at the token itself, for a judge (default), or before it, for the rule diversed",
    )
    features.add_argument(
        "--extra-features",
        nargs="+",
        default=(),
        choices=EXTRA_FEATURES,
        metavar="NAME",
        help=f"also keep numbers of the verification: {', '.join(EXTRA_FEATURES)}",
    )
    features.add_argument(
        "--after-mistake", choices=AFTER_MISTAKE, default="ignore", help="label of tokens after the first mistake"
    )
    features.add_argument(
        "--on-cut-token", choices=ON_CUT_TOKEN, default="mistaken", help="what to do where a span cuts a word"
    )
    features.add_argument("--max-length", type=positive, metavar="N", help="skip longer responses, prompt included")
    features.add_argument("--batch-size", type=positive, default=8, metavar="N", help="responses at once (default: 8)")
    features.add_argument("--skip-errors", action="store_true", help="skip broken lines instead of stopping")
    features.add_argument("--strict", action="store_true", help="stop at a response that cannot be labelled")
    features.set_defaults(run=run_features)


def run_features(args: argparse.Namespace) -> None:
    named = [pair for path in args.data for pair in load_named(path, skip_errors=args.skip_errors)]
    if not named:
        raise ValueError(f"{', '.join(args.data)} holds no rows: expected JSONL, each line {HOLDS}")
    names, rows = zip(*named, strict=True)
    uses_draft = any(name in DRAFT_FEATURES for name in args.extra_features)
    if args.draft and not uses_draft:
        logger.warning("--draft is not read: no extra feature is about the draft")
    tokenizer = load_tokenizers(args.target, args.draft)[0] if args.draft else load_tokenizer(args.target)
    store, report = extract_features(
        load_model(args.target, args),
        tokenizer,
        rows,
        args.output,
        hidden_state=args.hidden_state,
        state_of=args.state,
        after_mistake=args.after_mistake,
        on_cut_token=args.on_cut_token,
        max_length=args.max_length,
        batch_size=args.batch_size,
        draft_model=load_model(args.draft, args) if args.draft and uses_draft else None,
        extra=args.extra_features,
        names=names,
        strict=args.strict,
    )
    if processes().is_main_process:
        print(f"{args.output}: {store.n_tokens} tokens x {widths(store)}\n{report}")


# --- train ----------------------------------------------------------------------------------------------------------


def add_train(commands) -> None:
    train = commands.add_parser("train", help="fit a head to features")
    train.add_argument("--features", required=True, metavar="DIR", help="directory that `hf-judge features` filled")
    types = typing.get_type_hints(JudgeTrainingArguments)
    for field in dataclasses.fields(JudgeTrainingArguments):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        if kind is bool:
            train.add_argument(flag, action="store_true")
        elif typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            train.add_argument(flag, type=element, nargs="+", default=field.default, metavar="X")
        else:
            plain = next((t for t in typing.get_args(kind) if t is not type(None)), kind)
            required = field.default is dataclasses.MISSING
            train.add_argument(
                flag, type=plain, required=required, default=None if required else field.default, metavar="X"
            )
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    state = processes()
    if not state.is_main_process:  # a fit takes minutes on one device: the others wait for it
        state.wait_for_everyone()
        return
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(JudgeTrainingArguments)}
    trained = train_judge(FeatureStore(args.features), JudgeTrainingArguments(**values))
    metrics = trained.metrics
    print(f"{args.output_dir}: held-out prompts, l2 {metrics['l2']:g}: {described(metrics)}")
    for source, figures in metrics["by_source"].items():
        print(f"  {source}: {described(figures)}")
    print("  over the tokens on which the judge decides:\n  threshold  mistakes caught  good tokens accepted")
    for point in metrics["decided"]["curve"]:
        print(f"  {point['threshold']:9g}  {point['mistakes_caught']:15.1%}  {point['good_accepted']:20.1%}")
    state.wait_for_everyone()


# --- calibrate ------------------------------------------------------------------------------------------------------


def add_calibrate(commands) -> None:
    calibrate = commands.add_parser("calibrate", help="choose the threshold with a stated risk")
    calibrate.add_argument(
        "--head", required=True, metavar="DIR", help="head of `hf-judge train`, which gets the threshold"
    )
    calibrate.add_argument(
        "--thresholds", type=float, nargs="+", metavar="T", help="candidates (default: 20 by risk, 10 by task)"
    )
    calibrate.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="confidence of the bounds (default: 0.95)"
    )
    risk = calibrate.add_argument_group("by risk: at most this share of mistakes is accepted")
    risk.add_argument("--features", metavar="DIR", help="labelled tokens, without those the fit saw")
    risk.add_argument(
        "--risk", type=float, default=0.05, metavar="R", help="share of accepted mistakes (default: 0.05)"
    )
    risk.add_argument("--unit", choices=UNITS, default="prompt", help="unit of independent mistakes")
    task = calibrate.add_argument_group("by task: answers as right as the target's, up to a margin")
    task.add_argument("--margin", type=share, metavar="M", help="allowed loss of accuracy, e.g. 0.01")
    task.add_argument(
        "--certify", action="store_true", help="demand that the bound on lost answers, not only the loss, is within M"
    )
    task.add_argument(
        "--num-assistant-tokens", type=positive, default=32, metavar="N", help="drafted tokens per round (default: 32)"
    )
    task.add_argument("--strict", action="store_true", help="stop at a prompt that the models refuse")
    add_pair(task)
    add_tasks(task, required=False)
    calibrate.set_defaults(run=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> None:
    if (args.features is None) == (args.margin is None):
        raise ValueError("calibrate needs either --features (by risk) or --margin with models and prompts (by task)")
    head = JudgeHead.from_pretrained(args.head)
    certificate = _calibrate_by_task(head, args) if args.features is None else _calibrate_by_risk(head, args)
    if isinstance(certificate, AccuracyCertificate):
        print("\n".join(certificate.table()))
    apply_certificate(head, certificate)
    head.save_pretrained(args.head)
    shutil.rmtree(_answers_of_calibration(args.head), ignore_errors=True)
    print(f"{args.head}: {certificate.message()}")


def _calibrate_by_risk(head: JudgeHead, args: argparse.Namespace) -> RiskCertificate:
    prompts = Path(args.head) / PROMPTS_NAME
    if not prompts.is_file():
        logger.warning("%s is missing: the data must not share prompts with the fit", prompts)
    return calibrate_by_risk(
        head,
        FeatureStore(args.features),
        risk=args.risk,
        confidence=args.confidence,
        unit=args.unit,
        thresholds=args.thresholds or THRESHOLDS,
        fit_prompts=read_fit_prompts(prompts) if prompts.is_file() else (),
    )


def _calibrate_by_task(head: JudgeHead, args: argparse.Namespace) -> AccuracyCertificate:
    for name in ("target", "draft", "prompts"):
        if getattr(args, name) is None:
            raise ValueError(f"calibrate by task needs --{name}")
    check_tells_apart(head)
    check_margin(args.margin)
    thresholds = TASK_THRESHOLDS if args.thresholds is None else sorted(set(args.thresholds))
    check_thresholds(thresholds)
    check_confidence(args.confidence)
    checker = args.checker or (None if is_named(args.prompts) else "numeric")
    consent = args.allow_code_execution
    task = load_task(args.prompts, 0, checker=checker, pattern=args.pattern, allow_code_execution=consent)
    tokenizer, draft_tokenizer = load_tokenizers(args.target, args.draft)
    n = len(task.examples)
    task, refused = task.usable(tokenizer, strict=args.strict)
    if refused:
        warn(["\n".join([f"{len(refused)} of {n} prompts refused:", *listed(refused)])])
    check_margin(args.margin, len(task.examples))  # before the models work for hours
    n_needed = answers_needed(args.margin, args.confidence, len(thresholds)) if args.margin else None
    if args.certify and (n_needed is None or len(task.examples) < n_needed):
        raise ValueError(
            f"to certify at most {args.margin:.1%} lost answers at confidence {args.confidence:.0%} over "
            f"{len(thresholds)} thresholds takes {n_needed or 'infinitely many'} answers without a loss, there are "
            f"{len(task.examples)}; nothing was chosen. Pass more prompts, fewer --thresholds, or a greater --margin"
        )
    target, draft = load_model(args.target, args), load_model(args.draft, args)
    names = f"target {args.target} {fingerprint_of(target)}, draft {args.draft} {fingerprint_of(draft)}"
    pair = Pair(target, draft, tokenizer, {"judge": head}, names, draft_tokenizer)
    batched = Decoding(args.num_assistant_tokens, args.max_new_tokens, batch_size=args.batch_size)
    journal = _answers_of_calibration(args.head)
    answers = JudgedAnswers(pair, task, batched, journal_dir=journal)
    return calibrate_by_accuracy(
        right_answers(pair, task, Setting("plain"), batched, desc="Target's answers", journal_dir=journal),
        answers,
        margin=args.margin,
        thresholds=thresholds,
        confidence=args.confidence,
        certify=args.certify,
        accepted_per_forward=answers.accepted_per_forward,
    )


def _answers_of_calibration(head: str) -> Path:
    """Return the folder beside a head in which a calibration that was interrupted goes on."""
    return Path(f"{os.path.abspath(head)}.calibration.journal")


def read_fit_prompts(path: Path) -> list[str]:
    """Read the hashes of the prompts that a fit saw.

    Raises:
        ValueError: the file holds anything else.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `hf-judge train` again") from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{path} is damaged: expected a list of hashes, got {found!r:.60}; run `hf-judge train` again")
    return found
