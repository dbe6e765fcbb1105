"""Answers every example of a task under every setting: one process, one order, resumable.

The literature warns that accepted length misleads, since a lossy rule may write answers twice as long. What counts is
accuracy beside wall time per answer; `figures` computes both from the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.evaluation.instruments import count_forwards, draft_settings
from hf_judge.files.durable import Journal
from hf_judge.head.compatibility import check_pair
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.greedy import ANSWER_ALONE, stop_tokens_of
from hf_judge.labelling.prompts import Prompt, encode_prompt
from hf_judge.modeling.classes import judged
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.rules.by_name import Setting, make_verifier
from hf_judge.tasks.problems import Example, Task
from hf_judge.training.threshold_range import ThresholdRangeVerifier, holds_at
from hf_judge.upstream.forward import input_device
from hf_judge.upstream.generation import tokenizer_arguments
from hf_judge.verify.stats import VerdictCode


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
    name: str = ""  # written into the record of a run
    draft_tokenizer: PreTrainedTokenizerBase | None = None  # None: the target's
    tokenizers: dict = field(init=False, repr=False)  # keywords of `generate()` with this draft

    def __post_init__(self):
        self.target = judged(self.target)
        other = self.draft_tokenizer
        if other is not None:
            check_pair(self.tokenizer, other)
        self.tokenizers = tokenizer_arguments(self.target, self.draft, self.tokenizer, other or self.tokenizer)

    @property
    def stop_tokens(self) -> set[int]:
        """Tokens that end an answer of the target."""
        return stop_tokens_of(self.target)

    def encode(self, prompt: str | list[dict] | Prompt) -> torch.LongTensor:
        """Return the prompt's ids, (1, n) long; chat messages are put into the chat template.

        Raises:
            RefusedPrompt: the chat template or the tokenizer does not take the prompt.
        """
        return torch.tensor([encode_prompt(self.tokenizer, prompt)[1]], device=input_device(self.target))

    def text(self, tokens: list[int]) -> str:
        """Return the text of an answer."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


@dataclass(frozen=True)
class Decoding:
    """How every answer of a run is decoded."""

    num_assistant_tokens: int = 16
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: greedy
    seed: int = 0  # for sampling; every example has a random stream of its own
    batch_size: int = 1  # answers at once; their time is then the batch's, divided equally

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


class Method:
    """Answers examples with a pair under one setting.

    Args:
        pair: the models.
        setting: a baseline, or a rule at one value.
        decoding: draft length, answer length, sampling.

    Raises:
        ValueError: the setting cannot be batched, or its value is out of the rule's range.
    """

    def __init__(self, pair: Pair, setting: Setting, decoding: Decoding):
        self._pair, self._decoding = pair, decoding
        if setting.rule == "assisted" and decoding.batch_size > 1:
            raise ValueError(
                "upstream's assisted generation serves one prompt at a time: leave out 'assisted' or set batch_size 1"
            )
        self.verifier = make_verifier(setting, pair.heads)
        if self.verifier is not None:
            chosen = constant_drafts(pair.draft, self.verifier, decoding.num_assistant_tokens, **pair.tokenizers)
        elif setting.rule == "assisted":
            chosen = {"judge": False, "assistant_model": pair.draft, **pair.tokenizers}
        else:
            chosen = {"judge": False}
        if decoding.temperature > 0:
            chosen |= {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
        else:
            chosen["do_sample"] = False
        self._keywords = ANSWER_ALONE | {"return_dict_in_generate": True} | chosen

    def generate(self, prompts: list[torch.LongTensor], **more):
        """Generate after some prompts at once.

        Args:
            prompts: ids, (n,) long each.
            **more: further keywords of `generate()`; `max_new_tokens` is the decoding's unless given here.

        Returns:
            The output of `generate()`, a dictionary of tensors.
        """
        pair, decoding = self._pair, self._decoding
        ids, mask = left_padded(prompts)
        keywords = {"max_new_tokens": decoding.max_new_tokens} | self._keywords | more
        with draft_settings(pair.draft, decoding.num_assistant_tokens):
            return pair.target.generate(ids, attention_mask=mask, **keywords)

    def answer(self, examples: list[Example], **more) -> list[Answer]:
        """Answer some examples at once.

        Args:
            examples: as many as the decoding's batch size, or fewer.
            **more: see [`generate`].
        """
        prompts = [self._pair.encode(example.prompt)[0] for example in examples]
        if self._decoding.temperature > 0:
            torch.manual_seed(hash_seed(self._decoding.seed, examples[0].name))
        with count_forwards(self._pair.target) as forwards:
            start = time.perf_counter()
            output = self.generate(prompts, **more)
            sequences = output.sequences[:, max(map(len, prompts)) :].tolist()
            seconds = (time.perf_counter() - start) / len(examples)
        verdicts = [None] * len(examples) if self.verifier is None else output.verdicts.tolist()
        answers = []
        for example, tokens, codes in zip(examples, sequences, verdicts, strict=True):
            tokens, codes = self._without_padding(tokens, codes)
            right = bool(example.is_right(self._pair.text(tokens)))
            answers.append(Answer(tokens, codes, right, seconds, forwards=0))
        # A prompt takes part in its own rounds, and in what came before the first one: the pass over the prompts.
        rounds = [len(a.tokens) if a.codes is None else len(a.accepted_lengths) for a in answers]
        for answer, n_rounds in zip(answers, rounds, strict=True):
            answer.forwards = forwards.count - max(rounds) + n_rounds
        if self.verifier is not None:
            stats = output.judge_stats
            phases = (stats.seconds_drafting, stats.seconds_verifying, stats.seconds_judging, stats.seconds_rest)
            for answer in answers:  # measured for the whole batch only
                answer.drafted = stats.drafted / len(answers)
                answer.seconds_by_phase = [phase / len(answers) for phase in phases]
        return answers

    def _without_padding(self, tokens: list[int], codes: list[int] | None) -> tuple[list[int], list[int] | None]:
        """Cut off the padding, which makes all answers of a batch as long as the longest."""
        if codes is not None:
            n = sum(code != VerdictCode.PADDING for code in codes)
            return tokens[:n], codes[:n]
        return up_to_end(tokens, self._pair.stop_tokens), None


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
        settings: "plain" first.
        decoding: the same for all settings.
        journal_dir: directory that keeps every finished answer; an interrupted run continues from it. None: nothing is
            kept.
        on_answer: receives the number of new answers, those of an earlier run first.

    Returns:
        The answers.

    Raises:
        ValueError: `journal_dir` holds answers of another run, "plain" is not the first setting, or a setting cannot
            be batched.
    """
    if not settings or settings[0].rule != "plain":
        raise ValueError("the first setting must be 'plain', which the others are compared with")
    methods = {setting: Method(pair, setting, decoding) for setting in settings}
    record = journal_record(pair, task, decoding)
    with contextlib.ExitStack() as stack:
        journal = None if journal_dir is None else stack.enter_context(Journal(journal_dir, record))
        answers = {setting: {} for setting in settings}
        todo = _plan(pair, task, decoding.batch_size, {} if journal is None else journal.finished(), answers)
        on_answer(sum(map(len, answers.values())))
        for setting in dict.fromkeys(setting for setting, _ in todo):
            methods[setting].answer(task.examples[:1], max_new_tokens=4)  # warm up
        for setting, batch in todo:
            found = methods[setting].answer([example for example, _ in batch])
            for (example, key), answer in zip(batch, found, strict=True):
                answers[setting][example.name] = answer
                if journal is not None:
                    journal.append(key, asdict(answer))
            on_answer(len(batch))
    return answers


def _plan(
    pair: Pair, task: Task, batch_size: int, done: dict[str, dict], answers: Answers
) -> list[tuple[Setting, list[tuple[Example, str]]]]:
    """Plan the batches of a run, and take over what an earlier run has answered.

    Args:
        pair: its heads tell apart the answers of settings with equal names.
        task: the work.
        batch_size: examples at once.
        done: answers of the earlier run by their keys in the journal.
        answers: the settings as keys; receives the answers that are done.

    Returns:
        Each batch as a setting, and its examples with their keys in the journal.
    """
    settings, todo = list(answers), []
    prints = head_prints(pair)
    for number, start in enumerate(range(0, len(task.examples), batch_size)):
        turn = number % len(settings)  # the first setting of a turn pays for cold caches: rotate
        for setting in settings[turn:] + settings[:turn]:
            batch = []
            for example in task.examples[start : start + batch_size]:
                key = journal_key(prints, setting, example)
                if key in done:
                    answers[setting][example.name] = Answer(**done[key])
                else:
                    batch.append((example, key))
            if batch:
                todo.append((setting, batch))
    return todo


def journal_record(pair: Pair, task: Task, decoding: Decoding) -> dict:
    """Return what every answer in a journal depends on."""
    return {"pair": pair.name, "task": task.name, "decoding": asdict(decoding)}


def head_prints(pair: Pair) -> dict[str, str]:
    """Return a fingerprint of each head: a journal must not mix heads, even of one directory."""
    return {rule: f" ({_fingerprint(head)})" for rule, head in pair.heads.items()}


def journal_key(prints: dict[str, str], setting: Setting, example: Example) -> str:
    """Return the key of an answer in a journal; `prints` are of [`head_prints`]."""
    return f"{setting.name}{''.join(prints[name] for name in setting.heads if name in prints)} | {example.name}"


def right_answers(
    pair: Pair,
    task: Task,
    setting: Setting,
    decoding: Decoding,
    *,
    desc: str,
    journal_dir: str | os.PathLike | None = None,
) -> list[bool]:
    """Answer every example under one setting and say which answers are right.

    Args:
        pair: the models.
        task: the work.
        setting: a baseline, or a rule at one value.
        decoding: draft length, answer length, batch size.
        desc: label of the progress bar.
        journal_dir: folder that keeps every finished answer of every call with these models, work and decoding; a call
            that was interrupted goes on there. None: nothing is kept.
    """
    method = Method(pair, setting, decoding)
    with _opened(journal_dir, pair, task, decoding) as journal:
        key_of = {example.name: f"{setting.name} | {example.name}" for example in task.examples}
        done = {} if journal is None else journal.finished()
        right = {name: done[key]["right"] for name, key in key_of.items() if key in done}
        todo = [example for example in task.examples if example.name not in right]
        with tqdm(total=len(task.examples), initial=len(right), desc=desc, unit="answer") as bar:
            for start in range(0, len(todo), decoding.batch_size):
                batch = todo[start : start + decoding.batch_size]
                for example, answer in zip(batch, method.answer(batch), strict=True):
                    right[example.name] = answer.right
                    if journal is not None:
                        journal.append(key_of[example.name], {"right": answer.right})
                bar.update(len(batch))
    return [right[example.name] for example in task.examples]


@contextlib.contextmanager
def _opened(journal_dir: str | os.PathLike | None, pair: Pair, task: Task, decoding: Decoding, **more):
    """Open the journal of answers to a task, one for each work and models; None where no folder is given."""
    if journal_dir is None:
        yield None
        return
    # neither the order nor the number of prompts at once changes an answer
    settings = {"pair": pair.name, "task": task.name, "decoding": asdict(replace(decoding, batch_size=1))} | more
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    with Journal(os.path.join(journal_dir, name), settings) as journal:
        yield journal


class _Judged(NamedTuple):
    """Holds one judged answer, and the thresholds at which it stays the same."""

    lowest: float
    highest: float
    right: bool
    n_accepted: int
    n_forwards: int


class JudgedAnswers:
    """Says which judged answers are right at a threshold; called with one threshold after the other.

    An answer is decoded again only where the threshold changes it. The decoding must be greedy.

    Args:
        pair: the models; its head "judge" judges.
        task: the work.
        decoding: draft length, answer length, batch size.
        journal_dir: argument of [`right_answers`].
    """

    def __init__(self, pair: Pair, task: Task, decoding: Decoding, *, journal_dir: str | os.PathLike | None = None):
        if decoding.temperature > 0:
            raise ValueError(f"sampled answers differ at every threshold: temperature must be 0, got {decoding}")
        self._pair, self._task, self._decoding, self._journal_dir = pair, task, decoding, journal_dir
        self._decoded: dict[str, list[_Judged]] = {example.name: [] for example in task.examples}
        self.n_decoded = 0  # answers, for all thresholds together
        with self._journal() as journal:
            for key, value in ({} if journal is None else journal.finished()).items():
                self._decoded.get(key.partition(" | ")[2], []).append(_Judged(**value))

    def _journal(self):
        head = _fingerprint(self._pair.heads["judge"])
        return _opened(self._journal_dir, self._pair, self._task, self._decoding, head=head)

    def __call__(self, threshold: float) -> list[bool]:
        todo = [example for example in self._task.examples if self._known(example.name, threshold) is None]
        method = Method(self._pair, Setting("judge", threshold), self._decoding)
        hidden = not todo
        with (
            self._journal() as journal,
            tqdm(total=len(todo), desc=f"Judged at {threshold:g}", unit="answer", disable=hidden) as bar,
        ):
            for start in range(0, len(todo), self._decoding.batch_size):
                batch = todo[start : start + self._decoding.batch_size]
                verifier = ThresholdRangeVerifier(self._pair.heads["judge"], threshold, len(batch))
                for place, (example, answer) in enumerate(
                    zip(batch, method.answer(batch, judge=verifier), strict=True)
                ):
                    accepted = sum(answer.accepted_lengths)
                    judged = _Judged(*verifier.range_of(place), answer.right, accepted, answer.forwards)
                    self._decoded[example.name].append(judged)
                    if journal is not None:
                        journal.append(f"{threshold!r} | {example.name}", judged._asdict())
                bar.update(len(batch))
        self.n_decoded += len(todo)
        return [self._known(example.name, threshold).right for example in self._task.examples]

    def accepted_per_forward(self, threshold: float) -> float | None:
        """Return the accepted drafted tokens per forward of the target at a threshold that was called before."""
        known = [self._known(name, threshold) for name in self._decoded]
        if not known or None in known:
            return None
        return sum(answer.n_accepted for answer in known) / sum(answer.n_forwards for answer in known)

    def _known(self, name: str, threshold: float) -> _Judged | None:
        found = (answer for answer in self._decoded[name] if holds_at(threshold, answer.lowest, answer.highest))
        return next(found, None)


def left_padded(prompts: list[torch.LongTensor]) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Return the ids and the attention mask of a batch, (batch, n) long each, of prompts (n_i,) long."""
    ids = pad_sequence(prompts, batch_first=True, padding_side="left")
    return ids, pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True, padding_side="left")


def up_to_end(tokens: list[int], stop_tokens: set[int]) -> list[int]:
    """Return the new tokens up to the first that ends an answer, this one included; padding follows it."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stop_tokens), len(tokens))]


def _fingerprint(head: JudgeHead) -> str:
    digest = hashlib.sha256(f"{head.config.hidden_state} {head.config.rescue_window}".encode())
    for parameter in (head.weight, head.bias):
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def hash_seed(seed: int, name: str) -> int:
    """Return the seed of an example's own random stream."""
    return (seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(name))) % (1 << 31)
