"""The network of an EAGLE-3 draft (arXiv 2503.01840, section 3), and its cache.

At position i the network reads the embedding of token i+1 and a state g_i, and predicts token i+2. The state comes
from the target: ``g_i = fc([a; b; c])``, where a, b and c are the target's states after some of its layers, read at
token i. Where the target has not been yet, the state is the network's own output at the position before.
"""

from __future__ import annotations

import functools
import json
import weakref
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from hf_judge.files.durable import write_together
from hf_judge.speculators.config import CONFIG_NAME, Eagle3Config
from hf_judge.speculators.weights import FLAGS, IDS, WEIGHTS_NAME
from hf_judge.upstream.forward import vocabulary_rows
from hf_judge.upstream.private_names import LlamaRotaryEmbedding

_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class Eagle3Cache:
    """Keys and values of the draft, one row for each prompt; a row may be written from any position on.

    A query sees the keys up to its own position, so what a row holds after its last token does no harm, and nothing
    has to be cut back.

    Args:
        n_layers: layers of the draft.
    """

    def __init__(self, n_layers: int):
        self._layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, positions: torch.LongTensor, n_keys: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values (rows, heads, n, head_dim) at positions (rows, n) long.

        Args:
            layer: number of the layer.
            keys, values, positions: what to write, and where.
            n_keys: keys to return, at least the largest position + 1.

        Returns:
            Keys and values, (rows, heads, n_keys, head_dim).
        """
        held = self._layers[layer]
        if held is None or held[0].shape[2] < n_keys:
            room = max(64, 2 * n_keys)
            grown = [keys.new_zeros(*keys.shape[:2], room, keys.shape[3]) for _ in range(2)]
            for old, new in zip(held or (), grown, strict=held is not None):
                new[:, :, : old.shape[2]] = old
            held = self._layers[layer] = tuple(grown)
        at = positions[:, None, :, None].expand_as(keys)
        for tensor, new in zip(held, (keys, values), strict=True):
            tensor.scatter_(2, at, new)
        return held[0][:, :, :n_keys], held[1][:, :, :n_keys]

    def keep(self, kept: list[int]) -> None:
        """Drop all rows but those at the places `kept`."""
        self._layers = [None if held is None else tuple(t[kept] for t in held) for held in self._layers]


class _Attention(nn.Module):
    def __init__(self, config: PreTrainedConfig, index: int):
        super().__init__()
        self.index, self.n_kv, self.head_dim = index, config.num_key_value_heads, config.head_dim
        read = config.hidden_size * (2 if index == 0 else 1)
        q, kv, bias = config.num_attention_heads * config.head_dim, self.n_kv * self.head_dim, config.attention_bias
        self.q_proj = nn.Linear(read, q, bias=bias)
        self.k_proj = nn.Linear(read, kv, bias=bias)
        self.v_proj = nn.Linear(read, kv, bias=bias)
        self.o_proj = nn.Linear(q, config.hidden_size, bias=bias)
        normed = config.model_type == "qwen3"  # Qwen3 normalizes each head's queries and keys
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if normed else nn.Identity()

    def forward(self, states, positions, angles, mask, cache):
        heads = (*states.shape[:2], -1, self.head_dim)
        queries = _rotated(self.q_norm(self.q_proj(states).view(heads)).transpose(1, 2), *angles)
        keys = _rotated(self.k_norm(self.k_proj(states).view(heads)).transpose(1, 2), *angles)
        values = self.v_proj(states).view(heads).transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(self.index, keys, values, positions, mask.shape[-1])
        repeats = queries.shape[1] // self.n_kv
        if repeats > 1:
            keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act = _ACTIVATIONS[config.hidden_act]

    def forward(self, states):
        return self.down_proj(self.act(self.gate_proj(states)) * self.up_proj(states))


class _Layer(nn.Module):
    """A decoder layer; the first one reads the token's embedding beside the state."""

    def __init__(self, config: PreTrainedConfig, index: int, norm_before_residual: bool):
        super().__init__()
        self._norm_before_residual = norm_before_residual
        self.self_attn, self.mlp = _Attention(config, index), _MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if index == 0 else None

    def forward(self, states, embeddings, positions, angles, mask, cache):
        residual = states
        if self.hidden_norm is None:
            read = self.input_layernorm(states)
        else:
            normed = self.hidden_norm(states)
            residual = normed if self._norm_before_residual else states
            read = torch.cat([self.input_layernorm(embeddings), normed], dim=-1)
        states = residual + self.self_attn(read, positions, angles, mask, cache)
        return states + self.mlp(self.post_attention_layernorm(states))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-other, one], dim=-1) * sin.unsqueeze(1)


class Eagle3DraftModel(nn.Module):
    """An EAGLE-3 draft for one target; load it with [`AutoDraftModel`] and pass it as `assistant_model`.

    Args:
        config: the draft's config.
        ids: (draft_vocab_size,) long, the target's id of each token of the draft; None: they are the same.
        target: the target, whose embedding is read where the draft has none of its own; None: it has one.
        name_or_path: where the draft was loaded from.
    """

    def __init__(
        self,
        config: Eagle3Config,
        ids: torch.LongTensor | None = None,
        target: PreTrainedModel | None = None,
        name_or_path: str = "",
    ):
        super().__init__()
        self.eagle_config, layers = config, config.layers
        self.config = layers  # as a model of transformers has it: `vocab_size` is the target's
        self.config.name_or_path = name_or_path
        self.generation_config = GenerationConfig(num_assistant_tokens=5, num_assistant_tokens_schedule="constant")
        width, n_aux, eps = layers.hidden_size, len(config.aux_layers), layers.rms_norm_eps
        read = n_aux * config.target_hidden_size
        self.input_norm = nn.RMSNorm(read, eps=eps) if config.norm_before_fc else None
        norms = [nn.RMSNorm(config.target_hidden_size, eps=eps) for _ in range(n_aux)]
        self.fc_norm = nn.ModuleList(norms) if config.fc_norm else None
        self.fc = nn.Linear(read, width, bias=False)
        self.layers = nn.ModuleList(
            _Layer(layers, i, config.norm_before_residual) for i in range(layers.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(width, eps=eps)
        self.lm_head = nn.Linear(width, config.draft_vocab_size, bias=False)
        # weak: neither a part of this module, nor kept in memory by it
        self._target = None if target is None else weakref.ref(target)
        self.embed_tokens = nn.Embedding(layers.vocab_size, width) if target is None else None
        self.rotary = None  # made on the first forward, where the model lies then
        self.register_buffer("ids", ids, persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.fc.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.fc.weight.dtype

    def new_cache(self) -> Eagle3Cache:
        """Return an empty cache."""
        return Eagle3Cache(len(self.layers))

    def check_target(self, target: PreTrainedModel) -> None:
        """Refuse a target whose states this draft cannot read.

        Raises:
            ValueError: width, depth or vocabulary differ.
        """
        config, ours = target.config.get_text_config(), self.eagle_config
        found = (config.hidden_size, vocabulary_rows(target), config.num_hidden_layers >= max(ours.aux_layers))
        if found != (ours.target_hidden_size, self.config.vocab_size, True):
            raise ValueError(
                f"this EAGLE-3 draft reads layers {list(ours.aux_layers)} of a target of width "
                f"{ours.target_hidden_size} with {self.config.vocab_size} tokens; this target has "
                f"{config.num_hidden_layers} layers, width {found[0]} and {found[1]} tokens: choose the draft of this "
                "target"
            )

    def embed(self, ids: torch.LongTensor) -> torch.Tensor:
        """Return the embeddings (..., width) of ids of the target's vocabulary."""
        # the plain rows: a target may scale what it looks up (Gemma), drafts are trained without that
        weight = (self.embed_tokens or self._embedding_of_target()).weight
        return F.embedding(ids.to(weight.device), weight).to(device=self.device, dtype=self.dtype)

    def _embedding_of_target(self) -> nn.Module:
        target = self._target()
        if target is None:
            raise RuntimeError("the target whose embedding this draft reads is gone: load the draft for one that stays")
        return target.get_input_embeddings()

    def fuse(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states g (batch, n, width) of the target's joined states (batch, n, n_aux * target width)."""
        states = states.to(device=self.device, dtype=self.dtype)
        if self.input_norm is not None:
            states = self.input_norm(states)
        if self.fc_norm is not None:
            parts = states.chunk(len(self.fc_norm), dim=-1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return self.fc(states)

    def forward(
        self,
        input_ids: torch.LongTensor,
        states: torch.Tensor,
        positions: torch.LongTensor,
        cache: Eagle3Cache | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the layers over new positions.

        Args:
            input_ids: (batch, n) long, the tokens after those at which the states were read.
            states: (batch, n, width), from [`fuse`] or from this method.
            positions: (batch, n) long, of the states.
            cache: keys and values of earlier positions; None: there are none.
            mask: (batch or 1, 1, n, keys) bool, what each position may see, in place of all up to itself.

        Returns:
            (batch, n, width), the states for the next step; [`logits`] reads them.
        """
        if self.rotary is None or self.rotary.inv_freq.device != self.device:
            # not a submodule: a change of the model's dtype must not round its angles
            self.__dict__["rotary"] = LlamaRotaryEmbedding(self.config).to(self.device)
        if mask is None:
            n_keys = int(positions.max()) + 1
            mask = torch.arange(n_keys, device=self.device) <= positions[:, None, :, None]
        angles = self.rotary(states, positions)
        embeddings = self.embed(input_ids)
        for layer in self.layers:
            states = layer(states, embeddings, positions, angles, mask, cache)
        return self.norm(states) if self.eagle_config.norm_output else states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., draft_vocab_size) of states that [`forward`] returned."""
        return self.lm_head(states if self.eagle_config.norm_output else self.norm(states))

    def logits_of_text(self, input_ids: torch.LongTensor, states: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, n, V) over the target's vocabulary, each of them one token ahead of the target.

        Args:
            input_ids: (1, n) long, the text.
            states: (1, n, n_aux * target width), the target's joined states at its tokens.

        Returns:
            At place i, what the draft expects after token i; at place 0, where it has read no state, zeros.
        """
        ids = input_ids.to(self.device)[:, 1:]
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        found = input_ids.new_zeros((1, 1, self.config.vocab_size), dtype=self.dtype, device=self.device)
        if ids.shape[1] == 0:
            return found
        read = self.logits(self(ids, self.fuse(states[:, :-1]), positions))
        return torch.cat([found, self.of_target(read)], dim=1)

    def of_target(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) over the target's vocabulary; what the draft lacks has -inf: it is never drawn."""
        if self.ids is None:
            return logits
        found = logits.new_full((*logits.shape[:-1], self.config.vocab_size), -torch.inf)
        return found.index_copy_(-1, self.ids, logits)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the format of the speculators library."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if self.ids is not None:
            ids = self.ids.cpu()
            tensors[IDS] = ids - torch.arange(len(ids))
            tensors[FLAGS] = torch.zeros(self.config.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
        text = json.dumps(self.eagle_config.to_dict(), indent=2, sort_keys=True) + "\n"
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_together(
            {
                directory / WEIGHTS_NAME: safetensors_bytes(tensors, metadata={"format": "pt"}),
                directory / CONFIG_NAME: text.encode(),
            }
        )


def empty(config: Eagle3Config, **arguments) -> Eagle3DraftModel:
    """Return a draft without memory for its weights, to be filled by `load_state_dict(..., assign=True)`."""
    ids = arguments.pop("ids", None)
    with torch.device("meta"):
        model = Eagle3DraftModel(config, **arguments)
    model.ids = ids
    return model
