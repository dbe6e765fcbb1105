"""Decides where an answer ends."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence
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
        # a caller's own, whose answers about a batch are to be checked at the end
        self.own = StoppingCriteriaList(c for c in others if n_prompts > 1 and not is_upstreams_own(c))
        self._ended_by_others: set[int] = set()  # places
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
                    self._ended_by_others.add(place)
                    return i + 1, True
        return n_new, finished

    def check_own(
        self, prompts: torch.LongTensor, answers: list[torch.LongTensor], pad: int, scores: tuple | None
    ) -> None:
        """Call a caller's own criteria again as plain decoding calls them: with all prompts of a batch in step.

        Here the prompts of a batch do not advance in step, so a criterion must look at each on its own, and keep no
        state.

        Args:
            prompts: (batch, n) long.
            answers: the new tokens of each prompt, (n_new,) long.
            pad: token that stands where an answer has ended.
            scores: step for step, (batch, V) float; None: they were not asked for.

        Raises:
            ValueError: a criterion would have ended an answer elsewhere.
        """
        lengths = torch.tensor([len(answer) for answer in answers], device=prompts.device)
        texts = torch.cat([prompts, pad_sequence(answers, batch_first=True, padding_value=pad)], dim=1)
        for n in range(1, int(lengths.max()) + 1):
            met = self.own(texts[:, : prompts.shape[1] + n], None if scores is None else scores[:n])
            too_late = met & (n < lengths)
            if bool((too_late | self._missed(met, n == lengths)).any()):
                names = ", ".join(type(criterion).__name__ for criterion in self.own)
                raise ValueError(
                    f"the stopping criterion ({names}) ends an answer elsewhere when it sees all prompts in step: it "
                    "looks at other prompts of the batch or keeps a state, and drafted prompts do not advance in step. "
                    "Make it depend on each prompt alone, call generate() per prompt, or pass judge=False"
                )

    def _missed(self, met: torch.Tensor, ends_here: torch.Tensor) -> torch.Tensor:
        """Tell which answers a caller's criteria ended, and would not have ended in step."""
        if len(self.own) < len(self._others[0]):  # one of transformers may have ended them
            return torch.zeros_like(met)
        ended = torch.tensor([place in self._ended_by_others for place in range(len(met))], device=met.device)
        return ends_here & ended & ~met
