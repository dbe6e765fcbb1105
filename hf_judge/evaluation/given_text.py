"""Verifies a given text under every rule, in one pass of the target: what stands, what is rescued, what is rejected.

This is the experiment that motivates Judge Decoding (2501.19309, section 3): strict verification rejects good text by
people or by another model after about two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.evaluation.detokenizer import pieces
from hf_judge.evaluation.evaluate import Decoding, Pair
from hf_judge.head.distributions import entropy
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.labelling.prompts import Prompt
from hf_judge.rules.by_name import Setting, make_verifier
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.tasks.problems import Task
from hf_judge.upstream.forward import of_width, readable
from hf_judge.upstream.states import StateReader
from hf_judge.verify.judge import head_features
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs
from hf_judge.verify.stats import VerdictCode

CHUNK = 256  # tokens verified at once; bounds memory, and the work that a rejection makes void
BINS = 20  # bins of a score histogram


@dataclass
class ReadText:
    """The outputs of both models for a text of n tokens."""

    ids: torch.Tensor  # (1, n) long
    logits: torch.Tensor  # (1, n+1, V) float32, the target's; position j predicts token j
    hidden: dict[str | None, torch.Tensor | None]  # hidden_state of a verifier -> (1, n+1, D)
    draft_logits: torch.Tensor  # (1, n, V) float32
    prompt_ids: torch.Tensor  # (1, m) long


@torch.no_grad()
def read_text(pair: Pair, prompt_ids: torch.LongTensor, ids: torch.LongTensor) -> ReadText:
    """Run each model once over prompt and text.

    Args:
        pair: the models; the target's states are read as its heads need them.
        prompt_ids: (1, m) long, m at least 1.
        ids: (1, n) long, the text.
    """
    sequence, n = torch.cat([prompt_ids, ids], dim=1), ids.shape[1]
    wanted = {head.config.hidden_state for head in pair.heads.values()}
    hidden, logits, joined = {None: None}, None, None
    reads_states = isinstance(pair.draft, Eagle3DraftModel)
    layers = pair.draft.eagle_config.aux_layers if reads_states else ()
    for state in sorted(wanted) or [None]:
        with StateReader(pair.target, state, layers) as reader:
            outputs = pair.target(**reader.request({"input_ids": sequence, "use_cache": False}, {}))
            hidden[state] = reader.read(outputs, n + 1)
            logits = outputs.logits[:, -n - 1 :].float()
            joined = reader.read_layers() if reads_states else None
    if reads_states:
        draft_logits = pair.draft.logits_of_text(sequence, joined)
    else:
        known = readable(pair.draft, sequence).to(pair.draft.device)
        draft_logits = of_width(pair.draft(input_ids=known, use_cache=False).logits, logits.shape[-1])
    return ReadText(ids, logits, hidden, draft_logits[:, -n - 1 : -1].float().to(logits.device), prompt_ids)


def walk(verifier: CandidateVerifier, text: ReadText, stop_tokens: torch.Tensor | None = None) -> list[int]:
    """Return a `VerdictCode` for every token of a text that is verified as a draft and continued after rejections.

    A rejected token is CORRECTED; verification starts again after it, on the unchanged text.

    Args:
        verifier: the rule.
        text: the text, read by both models.
        stop_tokens: tokens that end an answer, (n,) long.
    """
    codes, n = [], text.ids.shape[1]
    state = getattr(verifier, "hidden_state", "post_norm")
    while len(codes) < n:
        start, end = len(codes), min(len(codes) + CHUNK, n)
        ids = text.ids[:, start:end]
        candidates = Candidates(
            ids=ids,
            lengths=ids.new_full((1,), end - start),
            logits=text.draft_logits[:, start:end],
            stop=None if stop_tokens is None else torch.isin(ids, stop_tokens),
            n_generated=ids.new_full((1,), start),
            n_rescued=ids.new_full((1,), codes.count(VerdictCode.RESCUED)),
            raw_logits=text.draft_logits[:, start:end],
            texts=(torch.cat([text.prompt_ids, text.ids[:, :start]], dim=1),),
        )
        hidden = text.hidden[state]
        logits = text.logits[:, start : end + 1]
        verdict = verifier.verify(
            candidates, TargetOutputs(logits, logits, None if hidden is None else hidden[:, start : end + 1])
        )
        n_accepted = int(verdict.n_accepted)
        codes += verdict.codes[0, :n_accepted].tolist()
        if start + n_accepted < end:
            # a rule may leave a token to the target without rejecting it: it is then the target's own, or another
            left = verdict.codes[0, n_accepted] == VerdictCode.BONUS and verdict.next_token == ids[:, n_accepted]
            codes.append(int(VerdictCode.MATCHED if left else VerdictCode.CORRECTED))
    return codes


def runs(codes: list[int]) -> list[int]:
    """Return the lengths of the accepted stretches: one before every rejection, and the last."""
    lengths = [0]
    for code in codes:
        if code == VerdictCode.CORRECTED:
            lengths.append(0)
        else:
            lengths[-1] += 1
    return lengths


def judge_scores(head: JudgeHead, text: ReadText) -> list[float]:
    """Return a head's score, sigmoid of its logit, for every token of the text."""
    candidates = Candidates(text.ids, raw_logits=text.draft_logits)
    outputs = TargetOutputs(text.logits, text.logits, text.hidden[head.config.hidden_state])
    return head(head_features(head, candidates, outputs))[0].sigmoid().tolist()


def token_details(pair: Pair, text: ReadText) -> list[dict]:
    """Describe every token: text, both models' probabilities, the target's rank and entropy, every head's score."""
    ids, target = text.ids[0], text.logits[0, :-1]
    at = ids.unsqueeze(1)
    columns = {
        "target_prob": target.softmax(-1).gather(1, at).squeeze(1).tolist(),
        "draft_prob": text.draft_logits[0].softmax(-1).gather(1, at).squeeze(1).tolist(),
        "rank": (1 + (target > target.gather(1, at)).sum(-1)).tolist(),
        "entropy": entropy(target).tolist(),
    }
    best = target.argmax(-1).tolist()
    for name, head in _judges(pair).items():
        columns[name] = judge_scores(head, text)
    texts = pieces(pair.tokenizer, ids.tolist())
    return [
        {"text": texts[i], "target_says": pair.tokenizer.decode([best[i]])}
        | {name: _short(values[i]) for name, values in columns.items()}
        for i in range(len(texts))
    ]


def score_texts(
    pair: Pair, settings: list[Setting], texts: list[tuple[str | list | Prompt, str]], decoding: Decoding
) -> tuple[list[dict], list[dict]]:
    """Verify given continuations under every rule.

    Args:
        pair: the models.
        settings: rules; the baselines are left out.
        texts: prompts and their continuations.
        decoding: its `max_new_tokens` limits the continuations.

    Returns:
        Figures per rule (mean accepted stretch, first stretch, shares of rescued and rejected tokens), and per text
        {"prompt", "tokens": details, "codes": {setting: codes}}.
    """
    verifiers = {s: make_verifier(s, pair.heads) for s in settings}
    verifiers = {s: v for s, v in verifiers.items() if v is not None}
    stop_tokens = _stop_tokens(pair)
    views, codes = [], {s: [] for s in verifiers}
    for prompt, continuation in texts:
        ids = pair.tokenizer(continuation, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = ids[:, : decoding.max_new_tokens].to(pair.target.device)
        if ids.shape[1] == 0:
            raise ValueError(f"a given text is empty; its prompt: {str(prompt):.60}")
        text = read_text(pair, pair.encode(prompt), ids)
        for setting, verifier in verifiers.items():
            codes[setting].append(walk(verifier, text, stop_tokens))
        views.append(
            {
                "prompt": (prompt if isinstance(prompt, Prompt) else Prompt(prompt)).text,
                "tokens": token_details(pair, text),
                "codes": {s.name: codes[s][-1] for s in verifiers},
            }
        )
    return [_text_figures(s, found) for s, found in codes.items()], views


def _text_figures(setting: Setting, codes: list[list[int]]) -> dict:
    stretches = [runs(one) for one in codes]
    n = sum(map(len, codes))
    return {
        "rule": setting.rule,
        "number": setting.number,
        "threshold": setting.value,
        "texts": len(codes),
        "tokens": n,
        "first_accepted": sum(s[0] for s in stretches) / len(stretches),
        "mean_accepted": sum(map(sum, stretches)) / sum(map(len, stretches)),
        "rescued": sum(one.count(VerdictCode.RESCUED) for one in codes) / n,
        "rejected": sum(one.count(VerdictCode.CORRECTED) for one in codes) / n,
    }


@torch.no_grad()
def score_curves(pair: Pair, task: Task, n_examples: int, decoding: Decoding) -> dict:
    """Measure how every head scores the draft's own answers, by kind of token.

    The draft answers the first examples. Tokens are grouped by whether the target chooses the same token, and, where
    the task can find the first mistake, by whether they are right. Tokens after a mistake belong to no group.

    Args:
        pair: the models and heads.
        task: the work.
        n_examples: number of examples that are answered.
        decoding: its `max_new_tokens` limits the answers.

    Returns:
        {head: {"groups": {group: {"n", "histogram": BINS counts, "accepted": [share above each threshold]}},
        "thresholds"}}
    """
    thresholds = [i / 50 for i in range(51)]
    # a draft that reads the target's states writes no answer of its own
    judges = {} if isinstance(pair.draft, Eagle3DraftModel) else _judges(pair)
    scores = {name: {} for name in judges}
    for example in task.examples[:n_examples] if judges else []:
        prompt_ids = pair.encode(example.prompt)
        output = pair.draft.generate(
            prompt_ids.to(pair.draft.device),
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            **ANSWER_ALONE,
        )
        ids = output[:, prompt_ids.shape[1] :].to(pair.target.device)
        ids = ids[:, :-1] if torch.isin(ids[0, -1], _stop_tokens(pair)) else ids
        if ids.shape[1] == 0:
            continue
        text = read_text(pair, prompt_ids, ids)
        groups = _groups(pair, text, example.first_mistake)
        for name, head in judges.items():
            for value, group in zip(judge_scores(head, text), groups, strict=False):
                scores[name].setdefault(group, []).append(value)
    return {
        name: {
            "thresholds": thresholds,
            "groups": {group: _curve(values, thresholds) for group, values in sorted(found.items())},
        }
        for name, found in scores.items()
    }


def _groups(pair: Pair, text: ReadText, first_mistake) -> list[str]:
    agrees = (text.logits[0, :-1].argmax(-1) == text.ids[0]).tolist()
    if first_mistake is None:
        return ["target agrees" if yes else "target differs" for yes in agrees]
    texts = pieces(pair.tokenizer, text.ids[0].tolist())
    mistake = first_mistake("".join(texts))
    groups, end = [], 0
    for piece, yes in zip(texts, agrees, strict=True):
        end += len(piece)
        if mistake is not None and end > mistake[0]:
            groups.append("mistake, target agrees" if yes else "mistake, target differs")
            break
        groups.append("right, target agrees" if yes else "right, target differs")
    return groups


def _curve(values: list[float], thresholds: list[float]) -> dict:
    histogram = [0] * BINS
    for value in values:
        histogram[min(int(value * BINS), BINS - 1)] += 1
    accepted = [sum(value > t for value in values) / len(values) for t in thresholds]
    return {"n": len(values), "histogram": histogram, "accepted": accepted}


def _stop_tokens(pair: Pair) -> torch.Tensor:
    return torch.tensor(sorted(pair.stop_tokens), dtype=torch.long, device=pair.target.device)


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _judges(pair: Pair) -> dict[str, JudgeHead]:
    """Return the heads that score a token by the state at the token itself."""
    return {name: head for name, head in pair.heads.items() if head.config.state_of != "before"}
