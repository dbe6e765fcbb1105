"""Define the judge head: one linear layer on the target's hidden state (Judge Decoding, arXiv 2501.19309, section 3).

It may also read a few numbers of the verification (`JudgeConfig.extra_features`).
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

import torch
from torch import nn

from hf_judge.head.adapter import Adapter, read_adapter, write_adapter
from hf_judge.head.config import JudgeConfig
from hf_judge.head.files import CONFIG_NAME, WEIGHTS_NAME
from hf_judge.head.hub import is_hub_id, locate
from hf_judge.head.repository.publish import publish
from hf_judge.upstream.modules import KeepsDtype


class JudgeHead(KeepsDtype):
    """Reads the target's hidden state at a drafted token; a positive logit means "this token is acceptable".

    Args:
        config ([`JudgeConfig`]): the configuration, with `hidden_size`.

    Attributes:
        weight: `(1, F)` float32, F = `config.n_features`. bias: `(1,)` float32. Both are zero in a new head, which
            gives every token the score 0.5.
        source: `user/repo@commit` of a head from the Hub, else None.
        strict_base: whether a target other than the head's own is an error instead of a warning.
    """

    def __init__(self, config: JudgeConfig):
        super().__init__()
        if not isinstance(config, JudgeConfig):
            raise TypeError(f"JudgeHead expects a JudgeConfig, got {type(config).__name__}")
        if config.hidden_size is None:
            raise ValueError("JudgeConfig.hidden_size is not set: give the width of the target's hidden state")
        self.config = config
        self.source: str | None = None
        self.strict_base = False
        self.weight = nn.Parameter(torch.zeros(1, config.n_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Score tokens.

        Args:
            features: `(..., F)`, any float dtype, any device: the hidden states, and after them the extra features
                that the config names.

        Returns:
            The logits `(...)`, float32 on the device of `features`: a dot product of thousands of terms in half
            precision would move tokens across the threshold.

        Raises:
            ValueError: the last dimension is not F.
        """
        if features.shape[-1] != self.config.n_features:
            names = self.config.extra_features
            raise ValueError(
                f"head expects hidden size {self.config.hidden_size}"
                + (f" and after it {', '.join(names)}" if names else "")
                + f", got states of size {features.shape[-1]}"
            )
        weight, bias = (p.to(features.device, torch.float32, non_blocking=True) for p in (self.weight, self.bias))
        return nn.functional.linear(features.to(torch.float32), weight, bias).squeeze(-1)

    @torch.no_grad()
    def set_weights(self, weight: torch.Tensor, bias: torch.Tensor) -> JudgeHead:
        """Copy F weights and a bias, of any shape and float dtype, into the head; return the head."""
        self.weight.copy_(weight.view(1, -1))
        self.bias.copy_(bias.view(1))
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str | None = None,
        strict_base: bool = False,
    ) -> JudgeHead:
        """Load a head from a directory or from a repository on the Hub, checking everything.

        From the Hub, the commit is resolved once and exactly the two files of that commit are fetched; no code of the
        repository is run. Every call of this method looks up the branch again. `generate(judge="user/repo")` keeps the
        commit that it found first; after a call of this method it follows a moved branch too.

        Args:
            pretrained_model_name_or_path: the directory that holds the two files, or `user/repo`.
            revision, cache_dir, force_download, local_files_only, token, subfolder: arguments of
                `huggingface_hub.hf_hub_download`.
            strict_base: whether a target other than the head's own is an error instead of a warning.

        Raises:
            ValueError: there is no head, or the files hold anything but one (see `hf_judge.head.files`).
            OSError: the repository cannot be read; the message says why and what to do.
        """
        name = pretrained_model_name_or_path
        located = locate(
            name,
            (CONFIG_NAME, WEIGHTS_NAME),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
        )
        config, weight, bias = read_adapter(located.directory)
        head = cls(config).set_weights(weight, bias).requires_grad_(False)
        head.strict_base = strict_base
        if located.commit is not None:
            head.source = f"{name}@{located.commit}"
            if revision is None and subfolder is None:
                _forget_other_commits(name, located.commit)
        return head

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, the files that PEFT reads too.

        Raises:
            ValueError: the head holds NaN or infinite values.
        """
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise ValueError("this judge head holds NaN or infinite values and is not saved: train it again")
        write_adapter(save_directory, self.config, self.weight, self.bias)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        base_unknown: bool = False,
    ):
        """Publish the head: its two files, a card, and the code for use without this package, in one commit.

        The arguments are those of [`hf_judge.head.repository.publish.publish`].

        Returns:
            `huggingface_hub.CommitInfo`.
        """
        return publish(
            Adapter(self.config, self.weight, self.bias),
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            base_unknown=base_unknown,
        )

    def extra_repr(self) -> str:
        """Return what `repr` shows between the brackets."""
        names = self.config.extra_features
        text = f"hidden_size={self.config.hidden_size}, hidden_state={self.config.hidden_state!r}"
        return text + (f", extra_features={names}" if names else "")


class _Kept(NamedTuple):
    """Holds a head that every call of this process shares and none changes."""

    commit: str
    head: JudgeHead


_kept: dict[str, _Kept] = {}  # repository id -> its head
_kept_lock = threading.Lock()


def shared_head(name: str | os.PathLike) -> JudgeHead:
    """Return the head that `generate(judge=name)` uses.

    A head of the Hub is kept in memory: calls after the first need no network and no disk, until
    `JudgeHead.from_pretrained` finds that the main branch has moved. Directories are read every time.

    Raises:
        ValueError, OSError: as `JudgeHead.from_pretrained`.
    """
    kept = _kept.get(name)
    if kept is None:
        if not is_hub_id(name):
            return JudgeHead.from_pretrained(name)
        head = JudgeHead.from_pretrained(name)
        with _kept_lock:
            kept = _kept.setdefault(name, _Kept(head.source.rpartition("@")[2], head))
    return kept.head


def _forget_other_commits(name: str, commit: str) -> None:
    with _kept_lock:
        if name in _kept and _kept[name].commit != commit:
            del _kept[name]
