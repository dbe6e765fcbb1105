"""The subcommands that make a judge: mine, features, train, calibrate, info. Prints, as `cli` does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import typing
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM

from hf_judge.cli.options import add_checker, add_pair
from hf_judge.cli.terminal import above_zero, natural, positive, printable, share, warn
from hf_judge.evaluation.answers import Decoding, Pair, right_answers
from hf_judge.evaluation.loading import load_tokenizer, load_tokenizers, loading
from hf_judge.evaluation.tasks import file_task, read_prompts
from hf_judge.files.durable import check_writable
from hf_judge.files.jsonl import listed, read_json_object
from hf_judge.head.adapter import CONFIG_NAME
from hf_judge.head.config import HIDDEN_STATES
from hf_judge.head.distributions import EXTRA_FEATURES
from hf_judge.head.hub import is_hub_id
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.answers import imported, make_checker
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.responses import HOLDS, load_named, load_rows, marked, summarise
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.labelling.tokens import AFTER_MISTAKE, ON_CUT_TOKEN, label_rows
from hf_judge.rules.by_name import Setting
from hf_judge.training.calibration import (
    UNITS,
    apply_certificate,
    calibrate_by_accuracy,
    calibrate_by_risk,
    check_margin,
    check_tells_apart,
    check_thresholds,
)
from hf_judge.training.extraction import INDEX_NAME, FeatureStore, extract_features
from hf_judge.training.fit import METRICS_NAME, PROMPTS_NAME, JudgeTrainingArguments, train_judge
from hf_judge.training.metrics import THRESHOLDS

logger = logging.getLogger(__name__)


def add_training_commands(commands) -> None:
    """Add the subcommands to the parser's."""
    for add in (add_mine, add_features, add_train, add_calibrate, add_info):
        add(commands)


# --- mine -----------------------------------------------------------------------------------------------------------


def add_mine(commands) -> None:
    mine = commands.add_parser("mine", help="label responses without people")
    mine.add_argument(
        "--source",
        choices=("swap", "draft"),
        default="swap",
        help="swap the draft's tokens into the "
        "target's answers, or label the draft's own answers with --locate (default: swap)",
    )
    add_pair(mine, draft_required=True)
    _add_tasks(mine)
    mine.add_argument("--output", required=True, metavar="PATH", help="JSONL of labelled responses; a rerun goes on")
    mine.add_argument("--locate", metavar="MODULE:FUNCTION", help="for --source draft: finds the first mistake")
    mine.add_argument(
        "--num-samples", type=positive, default=1, metavar="N", help="for --source draft: answers per prompt"
    )
    mine.add_argument(
        "--num-repairs",
        type=natural,
        default=0,
        metavar="N",
        help="for --source draft: mistakes per answer that --target replaces, the draft going on",
    )
    mine.add_argument("--temperature", type=above_zero, default=1.0, help="for --source draft: of all but the first")
    mine.add_argument(
        "--label-matched",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for --source swap: label tokens that both models chose too (default: yes)",
    )
    mine.add_argument("--seed", type=int, default=0)
    mine.add_argument("--strict", action="store_true", help="stop at a prompt that the models or the checker refuse")
    mine.set_defaults(run=run_mine)


def run_mine(args: argparse.Namespace) -> None:
    tasks, names = read_tasks(args.prompts)
    check_writable(args.output)
    if args.source == "draft" and args.locate is None:
        raise ValueError("--source draft needs --locate module:function, which finds the first mistake")
    if args.source == "swap" and args.target is None:
        raise ValueError("--source swap needs --target")
    function = imported(args.locate) if args.source == "draft" else checker_of(args)
    uses_both = args.source == "swap" or (args.num_repairs and args.target)
    tokenizer = load_tokenizers(args.target, args.draft)[0] if uses_both else load_tokenizer(args.draft)
    draft = load_model(args.draft, args)
    if args.source == "draft":
        report = label_drafts(
            draft,
            tokenizer,
            tasks,
            function,
            args.output,
            target=load_model(args.target, args) if args.num_repairs and args.target else None,
            num_repairs=args.num_repairs,
            num_samples=args.num_samples,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            seed=args.seed,
            names=names,
            strict=args.strict,
        )
    else:
        target = load_model(args.target, args)
        report = mine_swaps(
            target,
            draft,
            tokenizer,
            tasks,
            function,
            args.output,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            label_matched=args.label_matched,
            names=names,
            strict=args.strict,
        )
    if processes().is_main_process:
        print(f"{args.output}: {report}")


# --- features -------------------------------------------------------------------------------------------------------


def add_features(commands) -> None:
    features = commands.add_parser("features", help="run the target over labelled responses")
    add_pair(features, target_required=True)
    features.add_argument("--data", required=True, nargs="+", metavar="PATH", help="JSONL files or saved datasets")
    features.add_argument("--output", required=True, metavar="DIR", help="directory of shards; a rerun goes on")
    features.add_argument("--hidden-state", choices=HIDDEN_STATES, default="post_norm")
    features.add_argument(
        "--extra-features",
        nargs="+",
        default=(),
        choices=EXTRA_FEATURES,
        metavar="NAME",
        help=f"also keep numbers of the verification: {', '.join(EXTRA_FEATURES)}",
    )
    features.add_argument("--after-mistake", choices=AFTER_MISTAKE, default="ignore", help="what follows a mistake")
    features.add_argument("--on-cut-token", choices=ON_CUT_TOKEN, default="mistaken", help="a span that cuts a word")
    features.add_argument("--max-length", type=positive, metavar="N", help="skip longer rows, prompt included")
    features.add_argument("--batch-size", type=positive, default=8, metavar="N")
    features.add_argument("--skip-errors", action="store_true", help="skip broken lines instead of stopping")
    features.add_argument("--strict", action="store_true", help="stop at a row that cannot be labelled")
    features.set_defaults(run=run_features)


def run_features(args: argparse.Namespace) -> None:
    named = [pair for path in args.data for pair in load_named(path, skip_errors=args.skip_errors)]
    if not named:
        raise ValueError(f"{', '.join(args.data)} holds no rows: expected JSONL, each line {HOLDS}")
    names, rows = zip(*named, strict=True)
    tokenizer = load_tokenizers(args.target, args.draft)[0] if args.draft else load_tokenizer(args.target)
    store, report = extract_features(
        load_model(args.target, args),
        tokenizer,
        rows,
        args.output,
        hidden_state=args.hidden_state,
        after_mistake=args.after_mistake,
        on_cut_token=args.on_cut_token,
        max_length=args.max_length,
        batch_size=args.batch_size,
        draft_model=load_model(args.draft, args) if args.draft else None,
        extra=args.extra_features,
        names=names,
        strict=args.strict,
    )
    if processes().is_main_process:
        print(f"{args.output}: {store.n_tokens} tokens x {_widths(store)}\n{report}")


# --- train ----------------------------------------------------------------------------------------------------------


def add_train(commands) -> None:
    train = commands.add_parser("train", help="fit a head to features")
    train.add_argument("--features", required=True, metavar="DIR", help="made by `hf-judge features`")
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
    if not state.is_main_process:  # a fit takes minutes on one device: the others see that it is done
        state.wait_for_everyone()
        return
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(JudgeTrainingArguments)}
    trained = train_judge(FeatureStore(args.features), JudgeTrainingArguments(**values))
    metrics = trained.metrics
    print(
        f"{args.output_dir}: AUC {metrics['auc']:.4f}, average precision {metrics['average_precision']:.4f} on "
        f"{metrics['n_acceptable']} good and {metrics['n_mistaken']} mistaken held-out tokens (l2 {metrics['l2']:g})"
    )
    for source, figures in metrics["by_source"].items():
        auc = "-" if figures["auc"] is None else f"{figures['auc']:.4f}"
        print(f"  {source}: AUC {auc}, {figures['n_acceptable']} good, {figures['n_mistaken']} mistaken")
    print("  threshold  mistakes caught  good tokens accepted")
    for point in metrics["curve"]:
        print(f"  {point['threshold']:9g}  {point['mistakes_caught']:15.1%}  {point['good_accepted']:20.1%}")
    state.wait_for_everyone()


# --- calibrate ------------------------------------------------------------------------------------------------------


def add_calibrate(commands) -> None:
    calibrate = commands.add_parser("calibrate", help="choose the threshold with a stated risk")
    calibrate.add_argument("--head", required=True, metavar="DIR", help="made by `hf-judge train`; gets the threshold")
    calibrate.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS, metavar="T", help="to try")
    risk = calibrate.add_argument_group("by risk: at most so many mistakes accepted")
    risk.add_argument("--features", metavar="DIR", help="labelled tokens; prompts that the fit saw are left out")
    risk.add_argument("--risk", type=float, default=0.05, metavar="R", help="share of mistakes (default: 0.05)")
    risk.add_argument("--confidence", type=float, default=0.95, metavar="C", help="default: 0.95")
    risk.add_argument("--unit", choices=UNITS, default="prompt", help="what counts as one independent mistake")
    task = calibrate.add_argument_group("by task: answers as right as the target's, up to a margin")
    task.add_argument("--margin", type=share, metavar="M", help="allowed loss of accuracy, e.g. 0.01")
    task.add_argument("--num-assistant-tokens", type=positive, default=32, metavar="N")
    task.add_argument("--strict", action="store_true", help="stop at a prompt that the models refuse")
    add_pair(task)
    _add_tasks(task, required=False)
    calibrate.set_defaults(run=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> None:
    if (args.features is None) == (args.margin is None):
        raise ValueError("calibrate needs either --features (by risk) or --margin with models and prompts (by task)")
    head = JudgeHead.from_pretrained(args.head)
    if args.features is not None:
        prompts = Path(args.head) / PROMPTS_NAME
        if not prompts.is_file():
            logger.warning("%s is missing: the data must not share prompts with the fit", prompts)
        certificate = calibrate_by_risk(
            head,
            FeatureStore(args.features),
            risk=args.risk,
            confidence=args.confidence,
            unit=args.unit,
            thresholds=args.thresholds,
            fit_prompts=read_fit_prompts(prompts) if prompts.is_file() else (),
        )
    else:
        certificate = _calibrate_by_task(head, args)
    apply_certificate(head, certificate)
    head.save_pretrained(args.head)
    print(f"{args.head}: {certificate.message()}")


def _calibrate_by_task(head: JudgeHead, args: argparse.Namespace):
    for name in ("target", "draft", "prompts"):
        if getattr(args, name) is None:
            raise ValueError(f"calibrate by task needs --{name}")
    check_tells_apart(head)
    check_margin(args.margin)
    check_thresholds(args.thresholds)
    task = file_task(args.prompts, checker_of(args), args.checker)
    tokenizer, draft_tokenizer = load_tokenizers(args.target, args.draft)
    n = len(task.examples)
    task, refused = task.usable(tokenizer, strict=args.strict)
    if refused:
        warn(["\n".join([f"{len(refused)} of {n} prompts refused:", *listed(refused)])])
    check_margin(args.margin, len(task.examples))  # before the models work for hours
    target, draft = load_model(args.target, args), load_model(args.draft, args)
    pair = Pair(target, draft, tokenizer, {"judge": head}, draft_tokenizer=draft_tokenizer)
    one_by_one = Decoding(args.num_assistant_tokens, args.max_new_tokens)
    batched = dataclasses.replace(one_by_one, batch_size=args.batch_size)
    return calibrate_by_accuracy(
        right_answers(pair, task, Setting("plain"), batched, desc="Target's answers"),
        lambda t: right_answers(pair, task, Setting("judge", t), one_by_one, desc=f"Judged at {t:g}"),
        margin=args.margin,
        thresholds=args.thresholds,
    )


# --- info -----------------------------------------------------------------------------------------------------------


def add_info(commands) -> None:
    info = commands.add_parser("info", help="what is in labelled data, features or a head")
    info.add_argument("path", help="JSONL of labelled responses, a directory of features, or a head (also on the Hub)")
    info.add_argument("--revision", metavar="REV", help="of a head on the Hub: branch, tag or commit")
    info.add_argument("--tokenizer", metavar="ID", help="also count tokens of both classes")
    info.add_argument("--samples", type=natural, default=3, metavar="N", help="mistakes to show (default: 3)")
    info.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> None:
    path = Path(args.path)
    if (path / CONFIG_NAME).is_file():
        _head_info(path)
    elif (path / INDEX_NAME).is_file():
        _features_info(path)
    elif path.exists():
        _data_info(path, args)
    elif is_hub_id(args.path):
        _head_info(args.path, args.revision)
    else:
        raise ValueError(
            f"nothing at '{path}': expected JSONL of labelled responses, a directory of features, or a judge head (or "
            "user/repo on the Hub)"
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
        f"{store.n_tokens} tokens x {_widths(store)} ('{index['hidden_state']}' of {index['model']}, draft: "
        f"{index['draft_model']}) in {len(index['shards'])} shards: {int((labels == 1).sum())} acceptable, "
        f"{int((labels == 0).sum())} mistaken, from {len({row['prompt'] for row in store.rows})} prompts"
    )


def _widths(store: FeatureStore) -> str:
    """E.g. "64 + 256 + entropy": the draft's state, the target's, the extra features."""
    sizes = (store.index["draft_hidden_size"], store.index["hidden_size"])
    return " + ".join([str(size) for size in sizes if size] + store.extra_features)


def _head_info(path: Path | str, revision: str | None = None) -> None:
    head = JudgeHead.from_pretrained(path, revision=revision)
    config = head.config
    target = f"{config.base_model_name_or_path} at {config.revision or 'an unnamed commit'}"
    print(
        f"judge head for {printable(target)}: {config.hidden_size} '{config.hidden_state}' features"
        f"{''.join(f' + {name}' for name in config.extra_features)}, threshold {config.threshold:g}, quantisation of "
        f"the target: {printable(config.quantization or 'not known')}"
    )
    if head.source:
        print(head.source)
    print(printable(json.dumps(config.provenance, indent=2)))
    metrics = Path(path) / METRICS_NAME
    if metrics.is_file():
        auc = read_json_object(metrics).get("auc")
        if not isinstance(auc, float | int):
            raise ValueError(f"{metrics} has no number 'auc': it was not written by `hf-judge train`")
        print(f"held-out AUC {auc:.4f} ({METRICS_NAME} has the curves)")


# --- shared ---------------------------------------------------------------------------------------------------------


def _add_tasks(parser, *, required: bool = True) -> None:
    parser.add_argument("--prompts", required=required, metavar="PATH", help="JSONL with `prompt`")
    add_checker(parser, default="numeric")
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="prompts at once (default: 16)")


def load_model(name: str, args: argparse.Namespace):
    """A causal language model in evaluation mode; on the GPU of this process where there is one.

    Raises:
        ValueError: several processes would spread their models over the same devices.
    """
    state = processes()
    if state.num_processes > 1 and args.device_map not in (None, "cpu"):
        raise ValueError(
            f"--device-map {args.device_map} in each of {state.num_processes} processes would put all their models on "
            "the same devices: drop it, or start one process"
        )
    with loading(f"the model '{name}'"):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype, device_map=args.device_map)
    if args.device_map is None and state.device.type == "cuda":
        model = model.to(state.device)
    return model.eval()


def read_tasks(path: str) -> tuple[list[dict], list[str]]:
    """Read the prompts of a JSONL file, and name where each stands: file and line.

    Raises:
        ValueError: a line is not a JSON object with a prompt.
    """
    lines = read_prompts(path)
    return [task for _, task in lines], [f"{path}, line {number}" for number, _ in lines]


def read_fit_prompts(path: Path) -> list[str]:
    """The hashes of the prompts that a fit saw.

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


def checker_of(args: argparse.Namespace) -> Callable[[str, dict], object]:
    """The checker that the arguments name.

    Raises:
        ValueError: an unknown name, or an option is missing.
    """
    return make_checker(args.checker, pattern=args.pattern, allow_code_execution=args.allow_code_execution)
