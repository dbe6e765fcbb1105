r"""Write the prompt and the answer of one entry of a public benchmark.

Each function takes an entry with the benchmark's own columns and returns an object with `prompt` (chat messages), and
`answer` or `tests`. The wordings follow lm-evaluation-harness (August 2026) where it has the task as generated text,
and the source that a function names elsewhere. None has few-shot examples: a chat model is asked as it is used.
"""

from __future__ import annotations

import json
import random
import re

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BEST_ANSWER = 'Your response should end with "The best answer is [letter]", where [letter] is one of {letters}.'


def ask(text: str) -> list[dict]:
    """Return a chat of one question."""
    return [{"role": "user", "content": text}]


def gsm8k(entry: dict) -> dict:
    """Ask a word problem (lm-evaluation-harness, gsm8k_cot_zeroshot); the reference ends in "#### 42"."""
    return {"prompt": ask(f"Q: {entry['question']}\nA: Let's think step by step."), "answer": entry["answer"]}


def svamp(entry: dict) -> dict:
    """Ask a word problem (2103.07191) in the words of gsm8k."""
    body = entry["Body"].strip()
    question = f"{body if body.endswith(('.', '?', '!')) else body + '.'} {entry['Question'].strip()}"
    return {"prompt": ask(f"Q: {question}\nA: Let's think step by step."), "answer": entry["Answer"]}


def boxed(question: str, answer: object) -> dict:
    r"""Ask for an answer in \boxed{}, in the words that Qwen2.5-Math (2409.12122) is evaluated with."""
    text = f"{question.strip()}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    return {"prompt": ask(text), "answer": str(answer)}


def math500(entry: dict) -> dict:
    """Ask a problem of MATH (2103.03874; the 500 of 2305.20050)."""
    return boxed(entry["problem"], entry["answer"])


def aime24(entry: dict) -> dict:
    """Ask a problem of AIME 2024."""
    return boxed(entry["Problem"], entry["Answer"])


def aime25(entry: dict) -> dict:
    """Ask a problem of AIME 2025."""
    return boxed(entry["problem"], entry["answer"])


def mbpp(entry: dict) -> dict:
    """Ask for a function that passes tests (lm-evaluation-harness, mbpp_instruct)."""
    tests = entry["test_list"]
    text = (
        f"You are an expert Python programmer, and here is your task:\n{entry['text']}\n"
        "Your code should pass these tests:\n" + "\n".join(tests)
    )
    return {"prompt": ask(text), "tests": "\n".join([entry.get("test_setup_code") or "", *tests])}


def humaneval(entry: dict) -> dict:
    """Ask to complete a function (lm-evaluation-harness, humaneval_instruct)."""
    text = (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{entry['prompt']}\n```"
    )
    imports = [line for line in entry["prompt"].splitlines() if re.match(r"(from\s+\S+\s+)?import\s", line)]
    tests = f"{entry['test']}\ncheck({entry['entry_point']})"
    return {"prompt": ask(text), "setup": "\n".join(imports), "tests": tests}


def livecodebench(entry: dict) -> dict:
    """Ask a problem of LiveCodeBench (2403.07974); its public tests are the check: the private ones are pickled."""
    starter = entry.get("starter_code") or ""
    how = (
        f"Use this starter code:\n```python\n{starter}\n```"
        if starter.strip()
        else "Read the input from standard input, and write the answer to standard output."
    )
    text = f"{entry['question_content']}\n\n{how}\nWrite the whole program in one Python code block."
    function = json.loads(entry.get("metadata") or "{}").get("func_name")
    cases = []
    for case in json.loads(entry["public_test_cases"]):
        cases.append(_function_case(function, case) if case["testtype"] == "functional" else _program_case(case))
    return {"prompt": ask(text), "cases": cases}


def _function_case(function: str, case: dict) -> dict:
    arguments = [json.loads(line) for line in case["input"].splitlines() if line.strip()]
    return {"tests": f"assert Solution().{function}(*{arguments!r}) == {json.loads(case['output'])!r}"}


def _program_case(case: dict) -> dict:
    setup = f"import io, sys\nsys.stdin, sys.stdout = io.StringIO({case['input']!r}), io.StringIO()"
    expected = [line.rstrip() for line in case["output"].strip().splitlines()]
    found = "[line.rstrip() for line in sys.stdout.getvalue().strip().splitlines()]"
    return {"setup": setup, "tests": f"import sys\nassert {found} == {expected!r}"}


def ifeval(entry: dict) -> dict:
    """Ask with instructions that a program can check (2311.07911)."""
    keys = ("key", "instruction_id_list", "prompt", "kwargs")
    return {"prompt": ask(entry["prompt"]), "answer": {name: entry[name] for name in keys}}


def choose(question: str, options: list[str], right: int) -> dict:
    """Ask to choose a letter, in the words of lm-evaluation-harness's arc_challenge_chat."""
    letters = LETTERS[: len(options)]
    named = f"{', '.join(letters[:-1])} and {letters[-1]}"
    lines = [
        f"Given the following question and {len(options)} candidate answers ({named}), choose the best answer.",
        f"Question: {question.strip()}",
        *(f"{letter}. {option.strip()}" for letter, option in zip(letters, options, strict=True)),
        "Think step by step. " + BEST_ANSWER.format(letters=named.replace(" and ", " or ")),
    ]
    return {"prompt": ask("\n".join(lines)), "answer": letters[right]}


def shuffled(question: str, right: str, wrong: list[str]) -> dict:
    """Ask as [`choose`], with the right option at a place that the question alone decides."""
    options = [right, *wrong]
    order = list(range(len(options)))
    random.Random(question).shuffle(order)
    return choose(question, [options[i] for i in order], order.index(0))


def gpqa(entry: dict) -> dict:
    """Ask a question of GPQA (2311.12022)."""
    wrong = [entry[f"Incorrect Answer {n}"] for n in (1, 2, 3)]
    return shuffled(entry["Question"], entry["Correct Answer"], wrong)


def mmlu_pro(entry: dict) -> dict:
    """Ask a question of MMLU-Pro (2406.01574), without the five examples of its category."""
    return choose(entry["question"], entry["options"], LETTERS.index(entry["answer"]))


def arc(entry: dict) -> dict:
    """Ask a question of ARC (1803.05457); some name their options 1 to 4."""
    choices = entry["choices"]
    return choose(entry["question"], choices["text"], choices["label"].index(entry["answerKey"]))


def truthfulqa(entry: dict) -> dict:
    """Ask a question of TruthfulQA (2109.07958) with the options of mc1, of which one is right."""
    options, labels = entry["mc1_targets"]["choices"], entry["mc1_targets"]["labels"]
    wrong = [option for option, label in zip(options, labels, strict=True) if not label]
    return shuffled(entry["question"], options[labels.index(1)], wrong)


def boolq(entry: dict) -> dict:
    """Ask a question about a passage (1905.10044; lm-evaluation-harness, boolq)."""
    text = f"{entry['passage']}\nQuestion: {entry['question']}?\nAnswer with yes or no."
    return {"prompt": ask(text), "answer": "yes" if entry["answer"] else "no"}


def turns(entry: dict) -> dict:
    """Ask the first turn of a conversation, as Spec-Bench (2401.07851) and MT-Bench (2306.05685) hold them."""
    said = entry.get("turns") or entry["prompt"]
    return {"prompt": ask(said[0] if isinstance(said, list) else said), "category": entry.get("category")}
