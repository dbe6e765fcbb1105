"""Compares acceptance rules on the same work: accuracy, length, forwards, time; answer by answer, resumable.

The literature warns that accepted length misleads (a lossy rule may double the answers): what counts is accuracy beside
wall time per answer. What the answers amount to is for `figures`; knows nothing about pages or the terminal.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.evaluation.demo import count_forwards, draft_length
from hf_judge.evaluation.tasks import Example, Task
from hf_judge.files.durable import Journal
from hf_judge.head.compatibility import check_pair
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt
from hf_judge.modeling.classes import judged
from hf_judge.rules.by_name import Setting, make_verifier
from hf_judge.upstream.devices import input_device
from hf_judge.upstream.generation import tokenizer_arguments
from hf_judge.verify.stats import VerdictCode

logger = logging.getLogger(__name__)


@dataclass
class Pair:
    """Two models and the heads to compare.

    Raises:
        ValueError: the tokenizers of the models disagree.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    heads: dict[str, JudgeHead] = field(default_factory=dict)  # "judge", "judge:NAME", "autojudge"
    name: str = ""  # goes into the record of a run
    draft_tokenizer: PreTrainedTokenizerBase | None = None  # None: the target's
    tokenizers: dict = field(init=False, repr=False)  # keywords of `generate()` with this draft

    def __post_init__(self):
        self.target = judged(self.target)
        other = self.draft_tokenizer
        if other is not None:
            check_pair(self.tokenizer, other)
        self.tokenizers = tokenizer_arguments(self.target, self.draft, self.tokenizer, other or self.tokenizer)

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer."""
        stop = self.target.generation_config.eos_token_id
        return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)

    def encode(self, prompt: str | list[dict] | Prompt) -> torch.LongTensor:
        """The prompt's ids, (1, n) long; chat messages go through the chat template.

        Raises:
            RefusedPrompt: the chat template or the tokenizer does not take it.
        """
        return torch.tensor([encode_prompt(self.tokenizer, prompt)[1]], device=input_device(self.target))

    def usable(self, task: Task, *, strict: bool = False) -> tuple[Task, list[tuple[str, str]]]:
        """The task without the examples whose prompts cannot be encoded, and where those stand and why.

        Args:
            strict: stop at the first such example.

        Raises:
            RefusedPrompt: none is left; with `strict`, one is refused.
        """
        examples, refused = [], []
        for example in task.examples:
            try:
                encode_prompt(self.tokenizer, example.prompt)
                examples.append(example)
            except RefusedPrompt as error:
                refused.append((task.where(example), str(error)))
        if refused and (strict or not examples):
            all_of_them = "" if examples else f"all {len(refused)} prompts were refused; "
            raise RefusedPrompt(f"{all_of_them}{': '.join(refused[0])}")
        return replace(task, examples=examples), refused


@dataclass(frozen=True)
class Decoding:
    """How every answer of a run is decoded."""

    num_assistant_tokens: int = 16
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: greedy
    seed: int = 0  # of sampling; every example has its own stream
    batch_size: int = 1  # answers at once; times are then those of a batch, shared by its answers

    def __post_init__(self):
        for name in ("num_assistant_tokens", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.batch_size > 1 and self.temperature > 0:
            raise ValueError("sampling gives every problem a random stream of its own: batch_size must be 1")


@dataclass
class Answer:
    """One example answered under one setting; JSON values only."""

    tokens: list[int]
    codes: list[int] | None  # a `VerdictCode` per token; None for the baselines
    right: bool
    seconds: float
    forwards: int
    drafted: float = 0
    seconds_by_phase: list[float] | None = None  # drafting, verifying, judging, rest

    @property
    def accepted_lengths(self) -> list[int]:
        """Accepted drafted tokens of every round."""
        lengths, run = [], 0
        for code in self.codes or ():
            if code in (VerdictCode.MATCHED, VerdictCode.RESCUED):
                run += 1
            else:
                lengths.append(run)
                run = 0
        return [*lengths, run] if run else lengths


Answers = dict[Setting, dict[str, Answer]]  # setting -> name of the example -> answer


def evaluate(
    pair: Pair,
    task: Task,
    settings: list[Setting],
    *,
    decoding: Decoding = Decoding(),
    journal_dir: str | os.PathLike | None = None,
    on_answer: Callable[[int], None] = lambda n: None,
) -> Answers:
    """Answer every example under every setting, interleaved in one process.

    Args:
        pair: the models.
        task: the work.
        settings: the first must be "plain".
        decoding: the same for all settings.
        journal_dir: keeps every finished answer; a run that was interrupted goes on there. None: nothing is kept.
        on_answer: called with the number of answers that came about, those of an earlier run first.

    Returns:
        The answers.

    Raises:
        ValueError: `journal_dir` holds answers of another run; "plain" is not the first setting; a setting that cannot
            be batched.
    """
    if not settings or settings[0].rule != "plain":
        raise ValueError("the first setting must be 'plain', which the others are compared with")
    answers = {setting: {} for setting in settings}
    record = {"pair": pair.name, "task": task.name, "decoding": asdict(decoding)}
    with contextlib.ExitStack() as stack:
        journal, done = None, {}
        if journal_dir is not None:
            journal = stack.enter_context(Journal(journal_dir, record))
            done = journal.finished()
        # answers of another head must not be taken for this one's, whatever directory it was loaded from
        prints = {rule: f" ({_fingerprint(head)})" for rule, head in pair.heads.items()}
        todo, n = [], decoding.batch_size
        for number, start in enumerate(range(0, len(task.examples), n)):
            turn = number % len(settings)  # whoever goes first pays for cold caches: take turns
            for setting in settings[turn:] + settings[:turn]:
                batch = []
                for example in task.examples[start : start + n]:
                    key = f"{setting.name}{prints.get(setting.rule, '')} | {example.name}"
                    if key in done:
                        answers[setting][example.name] = Answer(**done[key])
                    else:
                        batch.append((example, key))
                if batch:
                    todo.append((setting, batch))
        on_answer(sum(len(found) for found in answers.values()))
        ways = {setting: Way(pair, setting, decoding) for setting in settings}
        for setting in dict.fromkeys(setting for setting, _ in todo):
            ways[setting].answer(task.examples[:1], max_new_tokens=4)  # warm up
        for setting, batch in todo:
            found = ways[setting].answer([example for example, _ in batch])
            for (example, key), answer in zip(batch, found, strict=True):
                answers[setting][example.name] = answer
                if journal is not None:
                    journal.append(key, asdict(answer))
            on_answer(len(batch))
    return answers


class Way:
    """A setting, ready to answer."""

    def __init__(self, pair: Pair, setting: Setting, decoding: Decoding):
        self._pair, self._decoding = pair, decoding
        if setting.rule == "assisted" and decoding.batch_size > 1:
            raise ValueError(
                "upstream's assisted generation serves one prompt at a time: leave out 'assisted' or set batch_size 1"
            )
        self.verifier = make_verifier(setting, pair.heads)
        self._kwargs = {"judge": False}
        if setting.rule == "assisted":
            self._kwargs |= {"assistant_model": pair.draft} | pair.tokenizers
        elif self.verifier is not None:
            self._kwargs = {
                "assistant_model": pair.draft,
                **pair.tokenizers,
                "judge": self.verifier,
                "num_assistant_tokens": decoding.num_assistant_tokens,
                "num_assistant_tokens_schedule": "constant",
                "assistant_confidence_threshold": 0.0,
            }
        if decoding.temperature > 0:
            self._kwargs |= {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
        else:
            self._kwargs["do_sample"] = False

    def answer(self, examples: list[Example], max_new_tokens: int | None = None) -> list[Answer]:
        """Answer some examples at once."""
        pair, prompts = self._pair, [self._pair.encode(example.prompt)[0] for example in examples]
        if self._decoding.temperature > 0:
            torch.manual_seed(hash_seed(self._decoding.seed, examples[0].name))
        ids, mask = left_padded(prompts)
        with (
            draft_length(pair.draft, self._decoding.num_assistant_tokens),
            count_forwards(pair.target) as forwards,
        ):
            start = time.perf_counter()
            output = pair.target.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens or self._decoding.max_new_tokens,
                **ANSWER_ALONE | {"return_dict_in_generate": True},
                **self._kwargs,
            )
            rows = output.sequences[:, ids.shape[1] :].tolist()
            seconds = (time.perf_counter() - start) / len(examples)
        verdicts = [None] * len(rows) if self.verifier is None else output.verdicts.tolist()
        answers = []
        for example, tokens, codes in zip(examples, rows, verdicts, strict=True):
            tokens, codes = self._without_padding(tokens, codes)
            right = example.is_right(pair.tokenizer.decode(tokens, skip_special_tokens=True))
            answers.append(Answer(tokens, codes, bool(right), seconds, forwards=0))
        # A row takes part in its own rounds, and in what came before the first one: the engine's pass over the prompts.
        rounds = [len(a.tokens) if a.codes is None else len(a.accepted_lengths) for a in answers]
        for answer, n_rounds in zip(answers, rounds, strict=True):
            answer.forwards = forwards.count - max(rounds) + n_rounds
        if self.verifier is not None:
            stats = output.judge_stats
            phases = (stats.seconds_drafting, stats.seconds_verifying, stats.seconds_judging, stats.seconds_rest)
            for answer in answers:  # known of the batch alone
                answer.drafted = stats.drafted / len(answers)
                answer.seconds_by_phase = [phase / len(answers) for phase in phases]
        return answers

    def _without_padding(self, tokens: list[int], codes: list[int] | None) -> tuple[list[int], list[int] | None]:
        """A row's own tokens and codes: those of a batch are as long as its longest row's."""
        if codes is not None:
            n = sum(code != VerdictCode.PADDING for code in codes)
            return tokens[:n], codes[:n]
        return up_to_end(tokens, self._pair.stop_ids), None


def left_padded(prompts: list[torch.LongTensor]) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Prompts, (n_r,) long each, as the ids and the attention mask of a batch."""
    # pad_sequence knows the other side only
    flipped = [(ids.flip(0), torch.ones_like(ids)) for ids in prompts]
    ids, mask = (pad_sequence(rows, batch_first=True).flip(1) for rows in zip(*flipped, strict=True))
    return ids, mask


def up_to_end(tokens: list[int], stop_ids: set[int]) -> list[int]:
    """New tokens up to and with the first that ends an answer; padding follows it."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stop_ids), len(tokens))]


def _fingerprint(head: JudgeHead) -> str:
    digest = hashlib.sha256(head.config.hidden_state.encode())
    for parameter in (head.weight, head.bias):
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def hash_seed(seed: int, name: str) -> int:
    """A seed of its own for every example."""
    return (seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(name))) % (1 << 31)
