"""Replays acceptance without trained models: a judge reads random states and accepts as many tokens as a trace says."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead, judged
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import problems
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict

TRAINED_LAYERS = 4  # of the embedded target: deeper ones accept the same


class ReplayedJudge(JudgeCandidateVerifier):
    """Scores like a judge, and accepts what a trace says.

    Args:
        hidden_size: width of the target's hidden state.
        trace: accepted tokens of one round after another; starts again at its end.
        device: where the head lies.
    """

    def __init__(self, hidden_size: int, trace: list[int], device: str = "cpu"):
        super().__init__(JudgeHead(JudgeConfig(hidden_size=hidden_size, hidden_state="post_norm")).to(device), 0.5)
        self._trace, self._round = trace, 0

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """Do the judge's own work, then decide by the trace."""
        scored = self.judged(outputs.hidden[:, 1:])
        batch, k = candidates.ids.shape
        accepted = [self._trace[(self._round + r) % len(self._trace)] for r in range(batch)]
        self._round += batch
        wanted = torch.arange(k, device=scored.device) < torch.tensor(accepted, device=scored.device)[:, None]
        # the scores must be computed, and must not matter
        return decide(candidates, outputs, wanted | (scored & ~scored))


def record_trace(n_drafted: int, n_problems: int = 10) -> list[int]:
    """Return the accepted tokens of every whole round of the embedded pair."""
    pair = load_pair(TRAINED_LAYERS)
    trace = []

    class Recording(JudgeCandidateVerifier):
        def verify(self, candidates, outputs):
            verdict = super().verify(candidates, outputs)
            if candidates.ids.shape[1] == n_drafted and int(candidates.lengths[0]) == n_drafted:
                trace.append(int(verdict.n_accepted[0]))
            return verdict

    judge = Recording(JudgeHead.from_pretrained(pair.judge))
    for problem in problems(n_problems, seed=0):
        inputs = pair.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        pair.target.generate(
            **inputs, assistant_model=pair.draft, judge=judge, num_assistant_tokens=n_drafted, max_new_tokens=256
        )
    return trace


def constant_trace(mean: float, n_drafted: int) -> list[int]:
    """Return rounds of two neighbouring lengths with this mean, to a tenth."""
    low = min(int(mean), n_drafted)
    tenths = round(10 * (min(mean, n_drafted) - low))
    return [low + (i < tenths) for i in range(10)]


def random_llama(shape: dict, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Make a Llama of this shape with random weights that never ends an answer."""
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return judged(model.eval())


def nbytes(model: torch.nn.Module) -> int:
    """Return the bytes of all weights that a forward reads."""
    embeddings = model.get_input_embeddings().weight
    tied = model.config.tie_word_embeddings
    return sum(p.nbytes for p in model.parameters()) - (0 if tied else embeddings.nbytes)
