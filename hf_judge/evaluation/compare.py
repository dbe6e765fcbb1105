"""Measures everything that ``hf-judge evaluate`` reports, as JSON values."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import hf_judge
from hf_judge.evaluation.evaluate import Answers, Decoding, Pair, evaluate
from hf_judge.evaluation.figures import best_within, figures, warnings_of
from hf_judge.evaluation.given_text import read_text, score_curves, score_texts, token_details
from hf_judge.evaluation.report import result
from hf_judge.files.jsonl import listed
from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.problems import Task
from hf_judge.upstream import versions

N_SAMPLES = 3  # examples in the token view, each under the best setting of every rule


@dataclass(frozen=True)
class Work:
    """Problems and given texts that a pair can read."""

    task: Task
    texts: list[LabelledResponse] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What was left out, and why."""


def usable_work(
    pair: Pair, task: Task, texts: list[tuple[str, LabelledResponse]] = (), *, strict: bool = False
) -> Work:
    """Leave out the problems and texts that a pair cannot read.

    Args:
        pair: its tokenizer and chat template must take every prompt.
        task: the problems.
        texts: given texts, with the names of their lines.
        strict: stop at the first problem or text that cannot be read.

    Raises:
        ValueError: no problem can be read; with `strict`, a problem or a text cannot.
    """
    task, refused = task.usable(pair.tokenizer, strict=strict)
    usable, refused_texts = [], []
    for name, row in texts:
        try:
            encode_prompt(pair.tokenizer, row.asked)
            if not pair.tokenizer(row.response, add_special_tokens=False).input_ids:
                raise RefusedPrompt("the response is empty")
            usable.append(row)
        except RefusedPrompt as error:
            if strict:
                raise ValueError(f"{name}: {error}") from None
            refused_texts.append((name, str(error)))
    warnings = [
        "\n".join([f"{len(left_out)} {what} left out:", *listed(left_out)])
        for what, left_out in (("problems", refused), ("texts", refused_texts))
        if left_out
    ]
    return Work(task, usable, warnings)


def compare(
    pair: Pair,
    work: Work,
    settings: list[Setting],
    decoding: Decoding,
    *,
    command: str,
    journal_dir: str | os.PathLike | None = None,
    n_curve_examples: int = 30,
    on_answer: Callable[[int], None] = lambda n: None,
) -> dict:
    """Measure every setting on the same work.

    Args:
        pair: the models and heads.
        work: problems to answer, and given texts to walk through.
        settings: "plain" first.
        decoding: the same for all settings.
        command: command line, for the reader of the report.
        journal_dir, on_answer: see [`hf_judge.evaluation.evaluate.evaluate`].
        n_curve_examples: problems whose draft answers show how the heads score.

    Returns:
        See [`hf_judge.evaluation.report.result`].
    """
    start = time.perf_counter()
    answers = evaluate(pair, work.task, settings, decoding=decoding, journal_dir=journal_dir, on_answer=on_answer)
    rules = figures(answers)
    given = [(row.asked, row.response) for row in work.texts]
    text_rules, views = score_texts(pair, settings, given, decoding) if given else ([], [])
    return result(
        rules,
        setup(pair, command)
        | {
            "task": work.task.name,
            "n": len(work.task.examples),
            "num_assistant_tokens": decoding.num_assistant_tokens,
            "max_new_tokens": decoding.max_new_tokens,
            "batch_size": decoding.batch_size,
            "decoding": "greedy" if decoding.temperature == 0 else f"sampling at temperature {decoding.temperature}",
            "seed": decoding.seed,
            "seconds": round(time.perf_counter() - start, 1),
        },
        warnings=warnings_of(answers) + work.warnings,
        score_curves=score_curves(pair, work.task, n_curve_examples, decoding),
        samples=samples(pair, work.task, answers, rules),
        text_rules=text_rules,
        texts=views,
    )


def samples(pair: Pair, task: Task, answers: Answers, rules: list[dict]) -> list[dict]:
    """Choose answers for the token view: each rule at its fastest setting within 1 point of plain decoding.

    Args:
        pair: scores the tokens again.
        task: gives the prompts.
        answers: all answers.
        rules: figures of the same settings, in the same order.
    """
    best, shown = best_within(rules, 1.0), {}
    for setting, row in zip(answers, rules, strict=True):
        if row["drafted_per_answer"] is not None and best.get(row["rule"], row) is row:
            shown[setting.rule] = setting  # no setting within 1 point: the last and strictest is shown
    # the judge's answers go first: rescues are what a reader wants to see
    ordered = sorted(shown.values(), key=lambda setting: not setting.rule.startswith("judge"))
    found = []
    for example in task.examples[:N_SAMPLES]:
        prompt_ids = pair.encode(example.prompt)
        prompt = example.prompt if isinstance(example.prompt, Prompt) else Prompt(example.prompt)
        for setting in ordered:
            answer = answers[setting][example.name]
            if not answer.tokens:
                continue
            text = read_text(pair, prompt_ids, torch.tensor([answer.tokens], device=prompt_ids.device))
            found.append(
                {
                    "name": example.name,
                    "prompt": prompt.last,
                    "setting": setting.name,
                    "right": answer.right,
                    "forwards": answer.forwards,
                    "codes": answer.codes,
                    "tokens": token_details(pair, text),
                }
            )
    return found


def setup(pair: Pair, command: str) -> dict:
    """Describe what a reader needs to judge the figures and to measure them again.

    Args:
        pair: the models.
        command: command line.
    """
    device = pair.target.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "command": command,
        "pair": pair.name,
        "machine": f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "hf_judge": hf_judge.__version__,
        "transformers": str(versions.INSTALLED),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
