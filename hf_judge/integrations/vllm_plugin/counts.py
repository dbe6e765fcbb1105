"""Count drafted, accepted and rescued tokens in the workers, without waiting for the device.

A token counts as rescued if it was accepted, the judge had kept it, and after all constraints the target preferred
another one. In greedy decoding strict verification would have rejected exactly these. In sampling it would have
accepted some of them by chance.
"""

from __future__ import annotations

import torch

ATTRIBUTE = "hf_judge_counts"  # of vLLM's `ModelRunnerOutput`, which is pickled with all its attributes
KINDS = ("draft", "accepted", "rescued")


class DeviceCounts:
    """Adds up counts on a device.

    Args:
        k: number of drafted tokens per round at most.
        device: device of the sampler.
    """

    def __init__(self, k: int, device: torch.device):
        self._device = torch.zeros(len(KINDS), k, dtype=torch.int64, device=device)
        self._host = torch.zeros_like(self._device, device="cpu", pin_memory=device.type == "cuda")

    def add(self, place: torch.Tensor, n_sampled: torch.Tensor, drafted: torch.Tensor, overruled: torch.Tensor) -> None:
        """Count the tokens of one step.

        Args:
            place: (n,) integer, place of each token in its draft, from 0.
            n_sampled: (n,) integer, number of tokens that its request got in this step: the accepted ones and one more.
            drafted: (n,) bool, whether there is a token.
            overruled: (n,) bool, whether the judge kept it against the target's preference.
        """
        accepted = drafted & (place < n_sampled - 1)
        found = torch.stack([drafted, accepted, accepted & overruled]).to(torch.int64)
        self._device.index_add_(1, place.long().clamp(0, self._device.shape[1] - 1), found)

    def attach(self, output: object) -> None:
        """Give the totals to what a model runner returns. On a GPU they may lag behind by one step."""
        if output is None:
            return
        self._host.copy_(self._device, non_blocking=True)
        get_output = getattr(output, "get_output", None)
        if get_output is None:
            setattr(output, ATTRIBUTE, self._host.tolist())
            return

        def counted():  # vLLM asks for the result of an asynchronous step when it is there
            result = get_output()
            setattr(result, ATTRIBUTE, self._host.tolist())
            return result

        output.get_output = counted
