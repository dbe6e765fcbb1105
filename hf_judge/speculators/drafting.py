"""Drafts chains of tokens with an EAGLE-3 draft, for every unfinished prompt of a batch.

A text of n tokens t_0 ... t_{n-1}, of which the target has read all but the last, gives the states g_0 ... g_{n-2}. The
pair at position i is (t_{i+1}, g_i): the pair at n-2 drafts the first token. From there on the draft goes on from its
own states, which the next round replaces by the target's.
"""

from __future__ import annotations

import torch

from hf_judge.speculators.choice import TokenChoice
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.forward import sent
from hf_judge.upstream.generation import PreparedCall

CHUNK = 256  # positions read at once, so that a long prompt needs little memory


class Eagle3Drafter:
    """Drafts tokens from the states that the target's forwards leave behind.

    Args:
        model: the draft.
        call: the call as `generate()` prepared it.
        options: drafting settings of this call.
    """

    def __init__(self, model: Eagle3DraftModel, call: PreparedCall, options: DraftingOptions):
        self.model, self._choice = model, TokenChoice(call, options, model.device)
        batch = call.input_ids.shape[0]
        self._cache = model.new_cache()
        self._n_read = [0] * batch  # positions of each prompt that the cache holds, from the target's states
        self._states = [torch.zeros(0, 0)] * batch  # of further positions, (n, width)

    def extend(self, states: torch.Tensor, lengths: list[int], skipped: list[int] | None = None) -> None:
        """Take the target's states of tokens that it has read.

        Args:
            states: (batch, n, n_aux * target width), of the tokens after those whose states were taken before, and
                perhaps of rejected ones after them.
            lengths: tokens of each text, without padding, the last of which the target has not read.
            skipped: states at the beginning of each row that belong to padding.
        """
        fused = self.model.fuse(states)
        for i, length in enumerate(lengths):
            start, held = skipped[i] if skipped else 0, self._states[i]
            new = fused[i, start : start + length - 1 - self._n_read[i] - held.shape[0]]
            self._states[i] = torch.cat([held, new]) if len(held) else new.clone()

    @property
    def can_draft(self) -> bool:
        """Whether every text has a state to draft from: before the target has read anything there is none."""
        return all(len(states) for states in self._states)

    def propose(
        self, texts: list[torch.LongTensor], unpadded: list[torch.LongTensor], n_tokens: int
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Draft `n_tokens` after every text.

        Args:
            texts: the texts with the padding of their prompts, (1, n) long, for the processors.
            unpadded: the same texts without it.
            n_tokens: tokens to draft after each text, at least 1.

        Returns:
            ids (batch, n_tokens) long, lengths (batch,) long, and logits (batch, n_tokens, V) twice: as drawn from, and
            as the model gave them.
        """
        state, ids, scores, raw = self._read(unpadded), [], [], []
        first = [text.shape[1] - 1 for text in unpadded]  # position of the pair that comes next
        positions = sent(first, self.model.device).unsqueeze(1)
        for i in range(n_tokens):
            logits = self.model.of_target(self.model.logits(state[:, 0]))
            token, score = self._choice.choose(texts, ids, logits)
            raw.append(logits)
            scores.append(score)
            ids.append(token)
            if i + 1 < n_tokens:
                keys = torch.arange(max(first) + i + 1, device=positions.device)
                mask = keys <= positions[:, None, :, None] + i
                state = self.model(token, state, positions + i, self._cache, mask)
        drafted, device = torch.cat(ids, dim=1), texts[0].device
        useful, logits = self._choice.n_useful(drafted), torch.stack(scores, dim=1).to(device)
        raw_logits = torch.stack(raw, dim=1).to(device) if self._choice.processes else logits
        return drafted.to(device), useful.to(device), logits, raw_logits

    def keep(self, kept: list[int]) -> None:
        """Drop the prompts that have finished: go on with those at the places `kept`."""
        self._n_read, self._states = [self._n_read[i] for i in kept], [self._states[i] for i in kept]
        self._cache.keep(kept)
        self._choice.keep(kept)

    def _read(self, unpadded: list[torch.LongTensor]) -> torch.Tensor:
        """Read the pairs of all states taken since the last draft; return the last pair's output (batch, 1, width)."""
        lengths = [len(states) for states in self._states]
        longest, device = max(lengths), self.model.device
        # Rows with fewer pairs are filled up; what these write is overwritten before any position sees it.
        states = torch.stack([torch.nn.functional.pad(s, (0, 0, 0, longest - len(s))) for s in self._states])
        tokens = [text[0, n + 1 :] for text, n in zip(unpadded, self._n_read, strict=True)]
        ids = torch.stack([torch.nn.functional.pad(t, (0, longest - len(t))) for t in tokens]).to(device)
        positions = sent(self._n_read, device).unsqueeze(1) + torch.arange(longest, device=device)
        last, found = sent([n - 1 for n in lengths], device), None
        for start in range(0, longest, CHUNK):
            part = slice(start, start + CHUNK)
            n_keys = max(self._n_read) + min(start + CHUNK, longest)
            mask = torch.arange(n_keys, device=device) <= positions[:, None, part, None]
            out = self.model(ids[:, part], states[:, part], positions[:, part], self._cache, mask)
            here = (last - start).clamp(min=0, max=out.shape[1] - 1)[:, None, None].expand(-1, 1, out.shape[2])
            chosen = out.gather(1, here)
            found = chosen if found is None else torch.where((last >= start)[:, None, None], chosen, found)
        self._n_read = [n + more for n, more in zip(self._n_read, lengths, strict=True)]
        self._states = [states[:0] for states in self._states]
        return found
