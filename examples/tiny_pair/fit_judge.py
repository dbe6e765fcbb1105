"""Label tokens of the tiny world, read the target's states at them, and fit the judge head on these."""

import random
from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_judge import CandidateVerifier, JudgeHead, JudgeStats
from hf_judge.tiny import TinyPair
from hf_judge.tiny.mistakes import MISTAKES, solve_wrongly
from hf_judge.tiny.world import Problem, Style, first_mistake, solve
from hf_judge.verify import JudgeCandidateVerifier

STYLES = (Style(draft=0.85), Style(draft=0.85), Style(target=0.4, draft=0.3), Style())
Labelled = tuple[torch.Tensor, torch.Tensor]  # states (N, D) float32, labels (N,) float: 1 acceptable, 0 mistake


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """The chat prompt of a problem."""
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
    """States and labels of all labelled tokens of whole answers; one forward for each batch, padded on the right."""
    prompts = [(prompt_ids(pair.tokenizer, p), ids, token_labels(pair.tokenizer, p, ids)) for p, ids in rows]
    prompts.sort(key=lambda row: len(row[0]) + len(row[1]))
    states, labels = [], []
    for i in tqdm(range(0, len(prompts), batch_size), desc="states", unit="batch"):
        batch = prompts[i : i + batch_size]
        ids = torch.full((len(batch), max(len(p) + len(a) for p, a, _ in batch)), pair.tokenizer.pad_token_id)
        known = torch.full(ids.shape, -1)
        for j, (prompt, answer, answer_labels) in enumerate(batch):
            ids[j, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            known[j, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer_labels)
        hidden = pair.target.model(input_ids=ids, use_cache=False).last_hidden_state  # after the final norm
        states.append(hidden[known >= 0].float())
        labels.append(known[known >= 0].float())
    return torch.cat(states), torch.cat(labels)


def written_answers(pair: TinyPair, problems: list[Problem], seed: str) -> list[tuple[Problem, list[int]]]:
    """For each problem a right solution and two wrong ones, mostly in the draft's wording; every kind in turn."""
    rng, rows = random.Random(seed), []
    for i, problem in enumerate(problems):
        texts = [solve(problem, rng, rng.choice(STYLES))]
        kinds = (MISTAKES[i % len(MISTAKES)], rng.choice(("result", "amount", "op", "value")))
        texts += [solve_wrongly(problem, rng, rng.choice(STYLES), kind=kind)[0] for kind in kinds]
        rows += [(problem, pair.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    return rows


@torch.no_grad()
def generated_answers(
    model, tokenizer, problems: list[Problem], *, batch_size: int = 64
) -> list[tuple[Problem, list[int]]]:
    """A model's own greedy answers, without stop and padding tokens."""
    rows = []
    for i in tqdm(range(0, len(problems), batch_size), desc="answers", unit="batch"):
        batch = problems[i : i + batch_size]
        inputs = tokenizer.pad({"input_ids": [prompt_ids(tokenizer, p) for p in batch]}, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=256, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for problem, ids in zip(batch, output.tolist(), strict=True):
            stop = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
            rows.append((problem, ids[:stop]))
    return rows


class Recorder:
    """A verifier that keeps what another one is shown: the drafted tokens and the target's states at them."""

    def __init__(self, verifier: JudgeCandidateVerifier):
        self.verifier, self.rounds, self.stats = verifier, [], JudgeStats()
        self.hidden_state = verifier.hidden_state

    def verify(self, candidates, rows):
        self.rounds.append((int(candidates.n_generated[0]), candidates.ids[0].tolist(), rows.hidden[0, 1:].float()))
        return self.verifier.verify(candidates, rows)


def judged_states(pair: TinyPair, head: JudgeHead, problems: list[Problem], *, threshold: float) -> Labelled:
    """States and labels of all drafted tokens, accepted or not, met while decoding with a first head."""
    states, labels = [], []
    for problem in tqdm(problems, desc="judged", unit="problem"):
        recorder = Recorder(JudgeCandidateVerifier(head, threshold))
        answer, _ = generate(pair, problem, judge=recorder)
        for n_before, drafted, hidden in recorder.rounds:
            known = torch.tensor(token_labels(pair.tokenizer, problem, answer[:n_before] + drafted)[n_before:])
            states.append(hidden[known >= 0])
            labels.append(known[known >= 0].float())
    return torch.cat(states), torch.cat(labels)


def generate(pair: TinyPair, problem: Problem, *, judge: CandidateVerifier) -> tuple[list[int], JudgeStats]:
    """Answer one problem greedily with drafts of 32 tokens: the tokens and what the verifier did."""
    ids = torch.tensor([prompt_ids(pair.tokenizer, problem)])
    output = pair.target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=256,
        do_sample=False,
        assistant_model=pair.draft,
        judge=judge,
        num_assistant_tokens=32,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        return_dict_in_generate=True,
    )
    return output.sequences[0, ids.shape[1] :].tolist(), output.judge_stats


def fit(states: torch.Tensor, labels: torch.Tensor, *, l2: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression in which both classes weigh the same, on standardised states, by L-BFGS.

    Args:
        states: (N, D) float.
        labels: (N,) float, 1 acceptable, 0 mistake.
        l2: Penalty on the squared weights of the standardised states.

    Returns:
        weight (1, D) and bias (1,), float32, for the states as they are: the scaling is folded in.
    """
    mean, scale = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / scale
    weight = torch.zeros(states.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    balance = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())) / len(labels)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weight=balance, reduction="sum")
        value = value + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight, bias = weight.detach() / scale, bias.detach()
    return weight[None], (bias - (mean * weight).sum())[None]
