"""Decides where an answer ends."""

from __future__ import annotations

import torch
from transformers import EosTokenCriteria, GenerationConfig, MaxLengthCriteria, StoppingCriteriaList

from hf_judge.decoding.record import Record
from hf_judge.upstream.forward import stop_tokens
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.processors import AtPlace, is_upstreams_own


class StoppingRule:
    """Cuts a round's new tokens where the answer ends.

    Length and stop tokens are checked for all new tokens at once, other criteria token by token.

    Args:
        criteria: the stopping criteria as `generate()` prepared them.
        generation_config: the prepared config of this call.
        n_prompts: size of the batch.
        device: device of the token ids.
        ranks: the processes that run this very call together.
    """

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        n_prompts: int,
        device: torch.device,
        ranks: Ranks,
    ):
        self._ranks = ranks
        lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        self.max_length = min([*lengths, generation_config.max_length])
        self._ends = set()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self._ends.update(criterion.eos_token_id.flatten().tolist())
        configured = stop_tokens(generation_config)
        ends = self._ends | set([] if configured is None else configured.tolist())
        self.stop_tokens = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        others = [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]
        self._others = [  # for each place in the batch
            StoppingCriteriaList(
                c if n_prompts == 1 or is_upstreams_own(c) else AtPlace(c, place, n_prompts) for c in others
            )
            for place in range(n_prompts)
        ]

    def cut(
        self,
        place: int,
        ids: torch.LongTensor,
        tokens: list[int],
        record: Record,
        logits: torch.Tensor,
        scores: torch.Tensor,
    ) -> tuple[int, bool]:
        """Return how many of the new tokens stand, and whether the answer ends with them; record their scores.

        Args:
            place: place of the prompt in the batch.
            ids: (1, n) long, the text before the round.
            tokens: the round's new tokens.
            record: receives the scores of the tokens that stand.
            logits, scores: (1, k+1, V), the target's, before and after the processors.
        """
        room = max(self.max_length - ids.shape[1], 1)  # plain decoding too looks after its first token
        tokens = tokens[:room]
        n_new = next((i + 1 for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        finished = n_new == room or tokens[n_new - 1] in self._ends
        for i in range(n_new):
            record.scores(logits[:, i], scores[:, i])
            if self._others[place]:
                text = torch.cat([ids, ids.new_tensor([tokens[: i + 1]])], dim=1)
                met = self._others[place](text, record.step_scores).all()
                if bool(self._ranks.agree(met)):
                    return i + 1, True
        return n_new, finished
