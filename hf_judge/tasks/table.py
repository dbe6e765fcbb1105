"""Lists the tasks that have a name: where their entries stand, how they are asked, and how an answer is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_judge.tasks import prompts

MT_BENCH = "writing roleplay reasoning math coding extraction stem humanities"


@dataclass(frozen=True)
class TaskSpec:
    """Describes a public benchmark."""

    dataset: str
    """Dataset on the Hub, or the address of a JSONL file."""
    config: str | None
    split: str
    """Where nothing else is asked for."""
    columns: tuple[str, ...]
    """That the prompt and the answer are made of."""
    make: Callable[[dict], dict]
    """Writes the prompt and the answer of an entry."""
    checker: str | None
    """Reads the answer out of a response; None: there is no right answer, the task is for speed alone."""
    licence: str
    data_files: str | None = None
    """JSONL file in the dataset, where the dataset itself is a script, which `datasets` no longer runs."""
    kinds: tuple[tuple[str, str], ...] = ()
    """Parts that may be named in place of a split, with the categories of each."""

    @property
    def source(self) -> str:
        """Name of the dataset and its configuration."""
        return self.dataset if self.config is None else f"{self.dataset} ({self.config})"


SPEC_BENCH_KINDS = (
    ("multi-turn", MT_BENCH),
    ("translation", "translation"),
    ("summarization", "summarization"),
    ("qa", "qa"),
    ("math", "math_reasoning"),
    ("rag", "rag"),
)
TASKS = {
    "gsm8k": TaskSpec("openai/gsm8k", "main", "test", ("question", "answer"), prompts.gsm8k, "numeric", "MIT"),
    "svamp": TaskSpec(
        "ChilleD/SVAMP", None, "test", ("Body", "Question", "Answer"), prompts.svamp, "numeric", "MIT"
    ),
    "math500": TaskSpec(
        "HuggingFaceH4/MATH-500", None, "test", ("problem", "answer"), prompts.math500, "math", "MIT"
    ),
    "aime": TaskSpec(
        "Maxwell-Jia/AIME_2024", None, "train", ("Problem", "Answer"), prompts.aime24, "numeric", "MIT"
    ),
    "aime25": TaskSpec("math-ai/aime25", None, "test", ("problem", "answer"), prompts.aime25, "numeric", "Apache-2.0"),
    "mbpp": TaskSpec(
        "google-research-datasets/mbpp", "full", "test", ("text", "test_list"), prompts.mbpp, "unit_tests", "CC-BY-4.0"
    ),
    "humaneval": TaskSpec(
        "openai/openai_humaneval", None, "test", ("prompt", "test", "entry_point"), prompts.humaneval, "unit_tests",
        "MIT",
    ),
    "livecodebench": TaskSpec(
        "livecodebench/code_generation_lite", None, "test", ("question_content", "public_test_cases"),
        prompts.livecodebench, "unit_tests", "CC (the dataset's card names no version)", data_files="test.jsonl",
    ),
    "ifeval": TaskSpec(
        "google/IFEval", None, "train", ("key", "prompt", "instruction_id_list", "kwargs"), prompts.ifeval, "ifeval",
        "Apache-2.0",
    ),
    "gpqa": TaskSpec(
        "Idavidrein/gpqa", "gpqa_diamond", "train",
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        prompts.gpqa, "choice", "CC-BY-4.0 (gated)",
    ),
    "mmlu-pro": TaskSpec(
        "TIGER-Lab/MMLU-Pro", None, "test", ("question", "options", "answer"), prompts.mmlu_pro, "choice", "MIT"
    ),
    "arc": TaskSpec(
        "allenai/ai2_arc", "ARC-Challenge", "test", ("question", "choices", "answerKey"), prompts.arc, "choice",
        "CC-BY-SA-4.0",
    ),
    "boolq": TaskSpec(
        "google/boolq", None, "validation", ("question", "passage", "answer"), prompts.boolq, "yes_no", "CC-BY-SA-3.0"
    ),
    "truthfulqa": TaskSpec(
        "truthfulqa/truthful_qa", "multiple_choice", "validation", ("question", "mc1_targets"), prompts.truthfulqa,
        "choice", "Apache-2.0",
    ),
    "spec-bench": TaskSpec(
        "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl", None, "train",
        ("turns", "category"), prompts.turns, None, "Apache-2.0", kinds=SPEC_BENCH_KINDS,
    ),
    "mt-bench": TaskSpec(
        "HuggingFaceH4/mt_bench_prompts", None, "train", ("prompt", "category"), prompts.turns, None, "Apache-2.0"
    ),
}  # fmt: skip
