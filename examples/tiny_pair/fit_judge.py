"""Label tokens of the tiny world, read the target's states at them, and fit the judge head on these."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_judge import CandidateVerifier, JudgeHead, JudgeStats
from hf_judge.tiny import TinyPair
from hf_judge.tiny.mistakes import MISTAKES, solve_wrongly
from hf_judge.tiny.world import Problem, Style, first_mistake, solve
from hf_judge.verify.judge import JudgeCandidateVerifier

STYLES = (Style(draft=0.85), Style(draft=0.85), Style(target=0.4, draft=0.3), Style())


@dataclass(frozen=True)
class Labelled:
    """Holds labelled tokens and the target's states at them."""

    states: torch.Tensor
    """(N, D) float32, the target's state at the token itself, after the final norm."""
    labels: torch.Tensor
    """(N,) float32, 1 acceptable, 0 mistake."""
    matched: torch.Tensor
    """(N,) bool, strict verification accepts the token too, so the judge decides nothing there."""

    @classmethod
    def join(cls, parts: Iterable["Labelled"]) -> "Labelled":
        """Join parts, one after the other."""
        parts = list(parts)
        names = ("states", "labels", "matched")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """Return the ids of a problem's chat prompt."""
    messages = [{"role": "user", "content": problem.question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def token_labels(tokenizer: PreTrainedTokenizerBase, problem: Problem, ids: Sequence[int]) -> list[int]:
    """Label the tokens of a (partial) answer: 1 before its first mistake, 0 at it, -1 (unknown) after it.

    A stop token is never rescued, so it and what follows has no label.
    """
    text, ends = "", []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in tokenizer.all_special_tokens:
            break
        text += token.replace("Ġ", " ")  # the byte-level alphabet: one character for each byte, ours are ASCII
        ends.append(len(text))
    start, end = first_mistake(problem, text) or (len(text), len(text))
    starts = [0, *ends[:-1]]
    labels = [1 if b <= start else 0 if a < end else -1 for a, b in zip(starts, ends, strict=True)]
    return labels + [-1] * (len(ids) - len(labels))


@torch.no_grad()
def read_states(pair: TinyPair, rows: Iterable[tuple[Problem, list[int]]], *, batch_size: int = 64) -> Labelled:
    """Read all labelled tokens of whole answers; one forward for each batch, padded on the right."""
    prompts = [(prompt_ids(pair.tokenizer, p), ids, token_labels(pair.tokenizer, p, ids)) for p, ids in rows]
    prompts.sort(key=lambda row: len(row[0]) + len(row[1]))
    parts = []
    for i in tqdm(range(0, len(prompts), batch_size), desc="states", unit="batch"):
        batch = prompts[i : i + batch_size]
        ids = torch.full((len(batch), max(len(p) + len(a) for p, a, _ in batch)), pair.tokenizer.pad_token_id)
        known = torch.full(ids.shape, -1)
        for j, (prompt, answer, answer_labels) in enumerate(batch):
            ids[j, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            known[j, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer_labels)
        hidden = pair.target.model(input_ids=ids, use_cache=False).last_hidden_state  # after the final norm
        row, at = (known >= 0).nonzero(as_tuple=True)
        predicted = pair.target.lm_head(hidden[row, at - 1]).argmax(-1)
        parts.append(Labelled(hidden[row, at].float(), known[row, at].float(), predicted == ids[row, at]))
    return Labelled.join(parts)


def written_answers(pair: TinyPair, problems: list[Problem], seed: str) -> list[tuple[Problem, list[int]]]:
    """Write a right solution of each problem and two wrong ones, mostly in the draft's wording, every kind in turn."""
    rng, rows = random.Random(seed), []
    for i, problem in enumerate(problems):
        texts = [solve(problem, rng, rng.choice(STYLES))]
        kinds = (MISTAKES[i % len(MISTAKES)], rng.choice(("result", "amount", "op", "value")))
        texts += [solve_wrongly(problem, rng, rng.choice(STYLES), kind=kind)[0] for kind in kinds]
        rows += [(problem, pair.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    return rows


@torch.no_grad()
def generated_answers(
    model, tokenizer, problems: list[Problem], *, batch_size: int = 64, max_new_tokens: int = 256
) -> list[tuple[Problem, list[int]]]:
    """Let a model answer greedily, and drop stop and padding tokens."""
    rows = []
    for i in tqdm(range(0, len(problems), batch_size), desc="answers", unit="batch"):
        batch = problems[i : i + batch_size]
        inputs = tokenizer.pad({"input_ids": [prompt_ids(tokenizer, p) for p in batch]}, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[
            :, inputs["input_ids"].shape[1] :
        ]
        for problem, ids in zip(batch, output.tolist(), strict=True):
            stop = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
            rows.append((problem, ids[:stop]))
    return rows


class Recorder:
    """Keeps what a verifier reads in every round."""

    def __init__(self, verifier: JudgeCandidateVerifier):
        self.verifier, self.rounds, self.stats = verifier, [], JudgeStats()
        self.hidden_state = verifier.hidden_state

    def verify(self, candidates, rows):
        self.rounds.append((int(candidates.n_generated[0]), candidates.ids[0], rows))
        return self.verifier.verify(candidates, rows)


def judged_states(
    pair: TinyPair, head: JudgeHead, problems: list[Problem], *, threshold: float, max_new_tokens: int = 256
) -> Labelled:
    """Read all drafted tokens, accepted or not, that are met while decoding with a first head."""
    parts = []
    for problem in tqdm(problems, desc="judged", unit="problem"):
        recorder = Recorder(JudgeCandidateVerifier(head, threshold))
        answer = generate(pair, problem, judge=recorder, max_new_tokens=max_new_tokens).ids
        for n_before, drafted, rows in recorder.rounds:
            tokens = answer[:n_before] + drafted.tolist()
            known = torch.tensor(token_labels(pair.tokenizer, problem, tokens)[n_before:])
            matched = rows.logits[0, :-1].argmax(-1) == drafted
            kept = known >= 0
            parts.append(Labelled(rows.hidden[0, 1:][kept].float(), known[kept].float(), matched[kept]))
    return Labelled.join(parts)


class Answer(NamedTuple):
    """A verified answer."""

    ids: list[int]
    """Its tokens, the stop token included."""
    codes: list[int]
    """`VerdictCode` of each."""
    stats: JudgeStats


def generate(pair: TinyPair, problem: Problem, *, judge: CandidateVerifier, max_new_tokens: int = 256) -> Answer:
    """Answer one problem greedily with drafts of 32 tokens."""
    ids = torch.tensor([prompt_ids(pair.tokenizer, problem)])
    output = pair.target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        assistant_model=pair.draft,
        judge=judge,
        num_assistant_tokens=32,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        return_dict_in_generate=True,
    )
    return Answer(output.sequences[0, ids.shape[1] :].tolist(), output.verdicts[0].tolist(), output.judge_stats)


def fit(data: Labelled, *, matched_weight: float = 0.03, l2: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression in which both classes weigh the same, on standardised states, by L-BFGS.

    Args:
        data: What to fit.
        matched_weight: Of an acceptable token that strict verification accepts too: the judge decides nothing there.
        l2: Penalty on the squared weights of the standardised states.

    Returns:
        weight (1, D) and bias (1,), float32, for the states as they are: the scaling is folded in.
    """
    states, labels = data.states, data.labels
    importance = torch.where(data.matched & (labels > 0), matched_weight, 1.0)
    mean, scale = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / scale
    weight = torch.zeros(states.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    for label in (0, 1):
        importance[labels == label] /= 2 * importance[labels == label].sum()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weight=importance, reduction="sum")
        value = value + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight, bias = weight.detach() / scale, bias.detach()
    return weight[None], (bias - (mean * weight).sum())[None]
