"""Define the subcommands that make a head from labelled data: features, train, calibrate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

from hf_judge.cli.inputs import load_model, load_pair_tokenizers, tell_fewer
from hf_judge.cli.judges.label import widths
from hf_judge.cli.terminal import warn
from hf_judge.evaluation.evaluate import Decoding, JudgedAnswers, Pair, right_answers
from hf_judge.evaluation.loading import load_tokenizer
from hf_judge.files.jsonl import listed
from hf_judge.head.distributions import DRAFT_FEATURES
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.responses import HOLDS, load_named
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.load import load_task
from hf_judge.tasks.named import is_named
from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.calibration import (
    TASK_THRESHOLDS,
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
from hf_judge.training.extraction import extract_features
from hf_judge.training.fit import PROMPTS_NAME, train_judge
from hf_judge.training.metrics import THRESHOLDS, described
from hf_judge.training.store import FeatureStore

logger = logging.getLogger(__name__)


# --- features -------------------------------------------------------------------------------------------------------


def run_features(args: argparse.Namespace) -> None:
    named = [pair for path in args.data for pair in load_named(path, skip_errors=args.skip_errors)]
    if not named:
        raise ValueError(f"{', '.join(args.data)} holds no rows: expected JSONL, each line {HOLDS}")
    names, rows = zip(*named, strict=True)
    uses_draft = any(name in DRAFT_FEATURES for name in args.extra_features)
    if args.draft and not uses_draft:
        logger.warning("--draft is not read: no extra feature is about the draft")
    tokenizer = load_pair_tokenizers(args)[0] if args.draft else load_tokenizer(args.tokenizer or args.target)
    store, report = extract_features(
        load_model(args.target, args),
        tokenizer,
        rows,
        args.output_dir,
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
        print(f"{args.output_dir}: {store.n_tokens} tokens x {widths(store)}\n{report}")


# --- train ----------------------------------------------------------------------------------------------------------


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


def run_calibrate(args: argparse.Namespace) -> None:
    if (args.features is None) == (args.margin is None):
        raise ValueError("calibrate needs either --features (by risk) or --margin with models and prompts (by task)")
    head = JudgeHead.from_pretrained(args.judge)
    certificate = _calibrate_by_task(head, args) if args.features is None else _calibrate_by_risk(head, args)
    if isinstance(certificate, AccuracyCertificate):
        print("\n".join(certificate.table()))
    apply_certificate(head, certificate)
    head.save_pretrained(args.judge)
    shutil.rmtree(_answers_of_calibration(args.judge), ignore_errors=True)
    print(f"{args.judge}: {certificate.message()}")


def _calibrate_by_risk(head: JudgeHead, args: argparse.Namespace) -> RiskCertificate:
    prompts = Path(args.judge) / PROMPTS_NAME
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
    for name in ("target", "draft", "task"):
        if getattr(args, name) is None:
            raise ValueError(f"calibrate by task needs --{name}")
    check_tells_apart(head)
    check_margin(args.margin)
    thresholds = TASK_THRESHOLDS if args.thresholds is None else sorted(set(args.thresholds))
    check_thresholds(thresholds)
    check_confidence(args.confidence)
    checker = args.checker or (None if is_named(args.task) else "numeric")
    consent = args.allow_code_execution
    task = load_task(args.task, args.problems or 0, checker=checker, pattern=args.pattern, allow_code_execution=consent)
    tokenizer, draft_tokenizer = load_pair_tokenizers(args)
    n = len(task.examples)
    tell_fewer(args.problems, n, args.task)
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
    journal = _answers_of_calibration(args.judge)
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
