"""Compares both engines with plain greedy decoding on the very models of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_judge.doctor.findings import Diagnosis
from hf_judge.doctor.pair import Models
from hf_judge.evaluation.evaluate import left_padded
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.ragged.model import PREFILL_CHUNK
from hf_judge.upstream.forward import input_device, max_positions
from hf_judge.upstream.generation import tokenizer_arguments
from hf_judge.upstream.states import StateReader
from hf_judge.verify.decide import StrictVerifier

N_NEW, N_DRAFTED = 24, 5
TIE = 16  # two logits tie if they are this many units in the last place of the largest logit apart, or fewer
# relative distances of hidden states that the order of summation can explain
STATE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TEXT = (
    "A judge reads a draft and says of each token whether it is acceptable. Ana has 17 coins, finds 5 more and gives 3 "
    "away; how many has she left? The quick brown fox jumps over the lazy dog, twice a day, except on Sundays. "
)


class _FirstRound(StrictVerifier):
    """Verifies strictly, and keeps what the engine passed in the first round.

    Args:
        hidden_state: state that the engine must pass.
    """

    def __init__(self, hidden_state: str):
        super().__init__()
        self.hidden_state = hidden_state
        self.drafted: torch.Tensor | None = None  # (batch, k) long
        self.lengths: torch.Tensor | None = None  # (batch,) long
        self.hidden: torch.Tensor | None = None  # (batch, k+1, D)

    def verify(self, candidates, outputs):
        if self.hidden is None:
            self.drafted, self.hidden = candidates.ids.clone(), outputs.hidden.clone()
            self.lengths = candidates.lengths
        return super().verify(candidates, outputs)


def check_engines(found: Diagnosis, models: Models) -> None:
    """Run strict verification on each engine and compare it with plain greedy decoding, token by token.

    Of the two prompts, one is longer than a chunk of the ragged engine's prefill, the other is shorter and padded. A
    token that differs is a fault unless the target's two best logits tie there.
    """
    prompts = probe(models)
    plain = [_plain(models, ids) for ids in prompts]
    batches = {"ragged": [[0, 1]], "upstream": [[0], [1]]}
    for engine, numbers in batches.items():
        try:
            compared = [one for batch in numbers for one in _compare_batch(models, prompts, plain, batch, engine)]
        except (ValueError, NotImplementedError) as error:
            if engine == "ragged" and "cannot serve this call" in str(error):
                reason = str(error).partition("cannot serve this call: ")[2].partition("; use judge_engine")[0]
                found.engine_reason = reason
            else:
                found.problem(f"{engine} engine", " ".join(str(error).split())[:300])
            continue
        found.self_check[engine] = _summary(compared)
        _report(found, engine, models.target.dtype)
    found.engine = "ragged" if "ragged" in found.self_check else "upstream"
    if found.engine_reason is None:
        found.ok("engine", "the ragged engine serves this pair, batches too")
    else:
        found.warn(
            "engine",
            f"the ragged engine cannot serve this pair: {found.engine_reason}",
            "upstream's caches serve it, one prompt at a time",
        )


def probe(models: Models) -> list[torch.LongTensor]:
    """Return two prompts, (1, n) long each: one longer than a prefill chunk if positions suffice, and a shorter one."""
    room = min(max_positions(models.target), max_positions(models.draft)) - N_NEW - N_DRAFTED - 2
    ids = models.tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    n = min(PREFILL_CHUNK + 45, room)
    repeated = ids.repeat(1, -(-n // ids.shape[1]))
    device = input_device(models.target)
    return [repeated[:, :n].to(device), repeated[:, 3 : 3 + max(n // 3, 1)].to(device)]


def _plain(models: Models, ids: torch.LongTensor) -> list[int]:
    out = models.target.generate(
        ids, attention_mask=torch.ones_like(ids), judge=False, max_new_tokens=N_NEW, **_greedy(models)
    )
    return out[0, ids.shape[1] :].tolist()


def _compare_batch(
    models: Models, prompts: list[torch.LongTensor], plain: list[list[int]], batch: list[int], engine: str
) -> list[_Comparison]:
    """Compare strict answers with plain ones.

    Args:
        models: the pair.
        prompts: all prompts.
        plain: their plain answers.
        batch: numbers of the prompts that are answered at once.
        engine: what answers them.
    """
    verifier = _FirstRound("post_norm" if models.head is None else models.head.config.hidden_state)
    ids, mask = left_padded([prompts[number][0] for number in batch])
    tokenizers = tokenizer_arguments(models.target, models.draft, models.tokenizer, models.draft_tokenizer)
    out = models.target.generate(
        ids,
        attention_mask=mask,
        judge_engine=engine,
        max_new_tokens=N_NEW,
        **constant_drafts(models.draft, verifier, N_DRAFTED, **tokenizers),
        **_greedy(models),
    )
    answers = out[:, ids.shape[1] :].tolist()
    return [_compare(models, prompts[number], plain[number], answers[i], verifier, i) for i, number in enumerate(batch)]


def _greedy(models: Models) -> dict:
    """Return settings by which the model's own settings do not change the argmax."""
    pad = models.tokenizer.pad_token_id
    neutral = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return neutral | {"pad_token_id": 0 if pad is None else pad}


@dataclass(frozen=True)
class _Comparison:
    """One answer of an engine beside the plain one."""

    n_equal: int  # equal tokens, up to the first that differs
    n_expected: int
    gap: float | None  # between the logits of the first tokens that differ; None: all are equal
    tie: float  # largest gap that counts as a tie there
    state_error: float  # relative error of the hidden states of the first round


@torch.no_grad()
def _compare(
    models: Models, ids: torch.LongTensor, expected: list[int], got: list[int], verifier: _FirstRound, number: int
) -> _Comparison:
    """Compare one answer and the states of its first round; `number` is the prompt's place in the batch."""
    n = next((i for i, token in enumerate(expected) if i >= len(got) or got[i] != token), len(expected))
    gap, tie = None, 0.0
    if n < len(expected):
        prefix = torch.cat([ids, ids.new_tensor([expected[:n]])], dim=1)
        logits = models.target(input_ids=prefix, attention_mask=torch.ones_like(prefix)).logits[0, -1].float()
        other = got[n] if n < len(got) else int(logits.topk(2).indices[1])
        gap = float(logits[expected[n]] - logits[other])
        tie = TIE * torch.finfo(models.target.dtype).eps * float(logits.abs().max())
    k = int(verifier.lengths[number]) if verifier.lengths is not None else verifier.drafted.shape[1]
    whole = torch.cat([ids, verifier.drafted[number : number + 1, :k].to(ids.device)], dim=1)
    state = _plain_state(models.target, whole, verifier.hidden_state)[0, -k - 1 :].float()
    mine = verifier.hidden[number, : k + 1].float().to(state.device)
    return _Comparison(n, len(expected), gap, tie, float((mine - state).norm() / state.norm().clamp(min=1e-12)))


def _plain_state(model: PreTrainedModel, ids: torch.LongTensor, hidden_state: str) -> torch.Tensor:
    """Return the state, (1, n, D), of an ordinary forward, caught by a hook at the module that reads it."""
    if hidden_state != "post_norm":
        with StateReader(model, hidden_state) as reader:  # uses a hook too, on the final norm
            return reader.read(model(input_ids=ids, attention_mask=torch.ones_like(ids)), ids.shape[1])
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        hook.remove()
    return seen[0]


def _summary(compared: list[_Comparison]) -> dict:
    return {
        "equal": all(c.n_equal == c.n_expected or abs(c.gap) <= c.tie for c in compared),
        "tokens_compared": sum(c.n_equal for c in compared),
        "ties": sum(c.n_equal < c.n_expected and abs(c.gap) <= c.tie for c in compared),
        "largest_gap": max((abs(c.gap) for c in compared if c.gap is not None), default=0.0),
        "state_error": max(c.state_error for c in compared),
    }


def _report(found: Diagnosis, engine: str, dtype: torch.dtype) -> None:
    """Add the check of an engine from its summary."""
    name, summary, tolerance = f"{engine} engine", found.self_check[engine], STATE_TOLERANCE.get(dtype, 1e-1)
    if not summary["equal"]:
        found.problem(
            name,
            f"strict verification gave another token than plain greedy decoding (their logits are "
            f"{summary['largest_gap']:.3g} apart): judged answers would be wrong here",
            "report it with `hf-judge doctor --json`; meanwhile install tested versions or generate without a judge",
        )
    elif not summary["state_error"] <= tolerance:  # NaN is not
        found.problem(
            name,
            f"the hidden states that a judge reads differ from a plain forward's by {summary['state_error']:.2g} "
            f"(at most {tolerance:g} in this dtype)",
            "report it with `hf-judge doctor --json`; a judge would decide on wrong states here",
        )
    else:
        ties = f", {summary['ties']} prompt(s) up to a tie" if summary["ties"] else ""
        found.ok(
            name,
            f"strict verification equals plain greedy decoding on {summary['tokens_compared']} tokens{ties}; states "
            f"agree within {summary['state_error']:.1g}",
        )
