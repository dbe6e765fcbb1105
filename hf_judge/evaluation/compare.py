"""From the options of ``hf-judge evaluate`` and ``hf-judge bench`` to models, work and results.

Knows nothing about the terminal: progress goes to callbacks, results come back as JSON values.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import hf_judge
from hf_judge.evaluation.answers import Answers, Decoding, Pair, evaluate
from hf_judge.evaluation.figures import best_within, figures, warnings_of
from hf_judge.evaluation.given_text import read_text, score_curves, score_texts, token_details
from hf_judge.evaluation.loading import load_tokenizers, loading
from hf_judge.evaluation.report import result
from hf_judge.evaluation.tasks import Task
from hf_judge.files.jsonl import listed
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt
from hf_judge.labelling.responses import LabelledResponse, read_named
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM
from hf_judge.rules.by_name import Setting
from hf_judge.tiny.pair import load_pair
from hf_judge.upstream import versions

DEPTH = 24  # of the embedded target, unless asked for another
N_SAMPLES = 3  # answers in the token view, under the best setting of every rule


def load_models(
    target: str | None = None,
    draft: str | None = None,
    *,
    judges: list[str] | None = None,
    autojudge: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    depth: int | None = None,
) -> Pair:
    """The pair to measure: the embedded one without arguments.

    Args:
        target, draft: Hub ids or directories.
        judges: directories or Hub ids of heads; the first is the rule "judge", further ones "judge:NAME".
        autojudge: the head of the rule "autojudge".
        dtype, device_map: of both models, as `from_pretrained`.
        depth: layers of the embedded target; its answers do not depend on it.

    Raises:
        ValueError: only one of target and draft is given, two judges share a name, or the tokenizers disagree.
    """
    if depth is not None and target is not None:
        raise ValueError("--depth is of the embedded pair: leave it out with --target")
    if (target is None) != (draft is None):
        raise ValueError("pass both --target and --draft, or neither for the embedded pair")
    if target is None:
        tiny = load_pair(DEPTH if depth is None else depth)
        n_layers = tiny.target.config.num_hidden_layers
        pair = Pair(tiny.target, tiny.draft, tiny.tokenizer, name=f"the embedded pair, {n_layers} layers")
        judges = [tiny.judge] if judges is None else judges
    else:
        options = {"dtype": dtype} | ({} if device_map is None else {"device_map": device_map})
        tokenizers = load_tokenizers(target, draft)
        with loading(f"the model '{target}'"):
            big = AutoJudgeModelForCausalLM.from_pretrained(target, **options).eval()
        with loading(f"the model '{draft}'"):
            small = AutoModelForCausalLM.from_pretrained(draft, **options).eval()
        pair = Pair(big, small, tokenizers[0], name=f"target {target}, draft {draft}", draft_tokenizer=tokenizers[1])
    for number, directory in enumerate(judges or []):
        name = "judge" if number == 0 else f"judge:{Path(directory).name}"
        if name in pair.heads:
            raise ValueError(f"two judges are called {Path(directory).name!r}: rename the directory of one")
        pair.heads[name] = JudgeHead.from_pretrained(directory)
    if autojudge is not None:
        pair.heads["autojudge"] = JudgeHead.from_pretrained(autojudge)
    for head in pair.heads.values():
        pair.target.resolve_judge(head)  # does it fit this target?
    return pair


def compare(
    pair: Pair,
    task: Task,
    settings: list[Setting],
    decoding: Decoding,
    *,
    command: str,
    journal_dir: str | os.PathLike | None = None,
    texts: list[tuple[str, LabelledResponse]] = (),
    n_curve_examples: int = 30,
    on_answer: Callable[[int], None] = lambda n: None,
    strict: bool = False,
) -> dict:
    """Everything that ``hf-judge evaluate`` finds, as JSON values; see [`hf_judge.evaluation.report.result`].

    Problems and texts that the models cannot take are left out and named in the warnings; with `strict` the first of
    them is an error.
    """
    start = time.perf_counter()
    task, refused = pair.usable(task, strict=strict)
    texts, refused_texts = usable_texts(pair, texts, strict=strict)
    on_answer(len(refused) * len(settings))
    answers = evaluate(pair, task, settings, decoding=decoding, journal_dir=journal_dir, on_answer=on_answer)
    rules = figures(answers)
    given = [(row.asked, row.response) for row in texts]
    text_rules, views = score_texts(pair, settings, given, decoding) if given else ([], [])
    return result(
        rules,
        setup(pair, command)
        | {
            "task": task.name,
            "n": len(task.examples),
            "num_assistant_tokens": decoding.num_assistant_tokens,
            "max_new_tokens": decoding.max_new_tokens,
            "batch_size": decoding.batch_size,
            "decoding": "greedy" if decoding.temperature == 0 else f"sampling at temperature {decoding.temperature}",
            "seed": decoding.seed,
            "seconds": round(time.perf_counter() - start, 1),
        },
        warnings=warnings_of(answers) + refusals("problems", refused) + refusals("texts", refused_texts),
        score_curves=score_curves(pair, task, n_curve_examples, decoding),
        samples=samples(pair, task, answers, rules),
        text_rules=text_rules,
        texts=views,
    )


def samples(pair: Pair, task: Task, answers: Answers, rules: list[dict]) -> list[dict]:
    """Answers for the token view: each rule at its fastest setting within 1 point, or its strictest."""
    best, shown = best_within(rules, 1.0), {}
    for setting, row in zip(answers, rules, strict=True):
        if row["drafted_per_answer"] is not None and best.get(row["rule"], row) is row:
            shown[setting.rule] = setting  # without a best one the last, strictest stays
    # those that tell most go first: a judge's rescues
    ordered = sorted(shown.values(), key=lambda setting: not setting.rule.startswith("judge"))
    found = []
    for example in task.examples[:N_SAMPLES]:
        prompt_ids = pair.encode(example.prompt)
        asked = example.prompt if isinstance(example.prompt, Prompt) else Prompt(example.prompt)
        prompt = asked.last
        for setting in ordered:
            answer = answers[setting][example.name]
            if not answer.tokens:
                continue
            text = read_text(pair, prompt_ids, torch.tensor([answer.tokens], device=prompt_ids.device))
            found.append(
                {
                    "name": example.name,
                    "prompt": prompt,
                    "setting": setting.name,
                    "right": answer.right,
                    "forwards": answer.forwards,
                    "codes": answer.codes,
                    "tokens": token_details(pair, text),
                }
            )
    return found


def usable_texts(
    pair: Pair, texts: list[tuple[str, LabelledResponse]], *, strict: bool = False
) -> tuple[list[LabelledResponse], list[tuple[str, str]]]:
    """The given texts that the models can read, and the names of the others with the reasons.

    Raises:
        ValueError: with `strict`, one is refused.
    """
    usable, refused = [], []
    for name, row in texts:
        try:
            encode_prompt(pair.tokenizer, row.asked)
            if not pair.tokenizer(row.response, add_special_tokens=False).input_ids:
                raise RefusedPrompt("the response is empty")
            usable.append(row)
        except RefusedPrompt as error:
            if strict:
                raise ValueError(f"{name}: {error}") from None
            refused.append((name, str(error)))
    return usable, refused


def refusals(what: str, refused: list[tuple[str, str]]) -> list[str]:
    """A warning that counts and lists what was left out; none if nothing was."""
    return ["\n".join([f"{len(refused)} {what} left out:", *listed(refused)])] if refused else []


def load_texts(path: str | os.PathLike) -> list[tuple[str, LabelledResponse]]:
    """Prompts and continuations from a JSONL file with `prompt` and `response`, with the names of their lines.

    Raises:
        ValueError: a line is broken, or there are none.
    """
    rows = list(read_named(path))
    if not rows:
        raise ValueError(f"{path} holds no texts: one JSON object a line with 'prompt' and 'response'")
    return rows


def setup(pair: Pair, command: str) -> dict:
    """What a reader needs to judge the figures and to make them again."""
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
