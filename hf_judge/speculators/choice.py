"""Chooses drafted tokens from a draft's logits: the processors, a draw or the best one, and how many of them to use."""

from __future__ import annotations

import torch

from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.forward import stop_tokens
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processors import PromptProcessor
from hf_judge.verify.strict import drawn


class TokenChoice:
    """Chooses the tokens of one call's drafts: they obey the target's processors, and are drawn as its answers are.

    Args:
        call: the call as `generate()` prepared it.
        options: drafting settings of this call.
        device: where drafts are made.
    """

    def __init__(self, call: PreparedCall, options: DraftingOptions, device: torch.device):
        n_prompts = call.input_ids.shape[0]
        places = range(n_prompts) if call.logits_processor else ()
        self._processors = [PromptProcessor(call.logits_processor, place, n_prompts) for place in places]
        self._do_sample = bool(call.generation_config.do_sample)
        self._confidence = options.assistant_confidence_threshold or 0.0  # 0: every drafted token counts
        stop = stop_tokens(call.generation_config)
        self._stop_tokens = (call.input_ids.new_zeros(0) if stop is None else stop).to(device)
        self._confidences: list[torch.Tensor] = []

    @property
    def processes(self) -> bool:
        """Whether there are processors, so that scores differ from logits."""
        return bool(self._processors)

    def choose(
        self,
        texts: list[torch.LongTensor],
        drafted: list[torch.LongTensor],
        logits: torch.Tensor,
        best: torch.LongTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """Choose the next token of every draft.

        Args:
            texts: the texts, (1, n) long each, padding included.
            drafted: what was drafted after them, (batch, 1) long each.
            logits: (batch, V), the draft's, over the target's vocabulary.
            best: (batch, 1) long, the argmax of the logits if it is known; None: it is computed where it is needed.

        Returns:
            tokens (batch, 1) long, and the scores (batch, V) that they were drawn from.
        """
        scores = self._process(texts, drafted, logits) if self._processors else logits
        if self._do_sample:
            # where nothing can be drawn, any token: verification has no probability for it either
            token = drawn(scores.float().softmax(dim=-1)).clamp(min=0).unsqueeze(1)
        elif best is None or self._processors:
            token = scores.argmax(dim=-1, keepdim=True)
        else:
            token = best
        if self._confidence > 0:
            self._confidences.append(scores.float().softmax(dim=-1).gather(-1, token))
        return token, scores

    def n_useful(self, ids: torch.LongTensor) -> torch.LongTensor:
        """Count the drafted tokens (batch, k) of use, (batch,) long, and end the draft.

        These are the tokens up to the first stop token, and before the first token drafted without confidence.
        """
        ended = torch.isin(ids, self._stop_tokens)
        useless = ended.cumsum(dim=1) - ended.long() > 0
        if self._confidences:
            useless = useless | ((torch.cat(self._confidences, dim=1) < self._confidence).cumsum(dim=1) > 0)
            self._confidences = []
        return (~useless).long().cumprod(dim=1).sum(dim=1)

    def keep(self, kept: list[int]) -> None:
        """Drop the prompts that have finished: go on with those at the places `kept`."""
        if self._processors:
            self._processors = [self._processors[i] for i in kept]

    def _process(self, texts, drafted: list[torch.LongTensor], logits: torch.Tensor) -> torch.Tensor:
        processed = []
        for i, text in enumerate(texts):
            text = torch.cat([text.to(logits.device), *(token[i : i + 1] for token in drafted)], dim=1)
            scores, _ = self._processors[i](text, logits[i : i + 1, None].float(), text[:, :0])
            processed.append(scores[:, 0])
        return torch.cat(processed)
