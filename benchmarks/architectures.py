"""Finds which engine serves which architecture: builds each decoder of transformers tiny, and compares answers.

    python benchmarks/architectures.py [--only llama qwen3] [--write]

For each architecture a model with random weights of unit gain, and a noisy copy as the draft. Strict verification must
give the tokens of plain greedy decoding: on upstream's caches for each of three prompts (of 40, 25 and 7 tokens, two of
them longer than the windows that are set to 16), and on the ragged engine for the three as a padded batch, which is
tried on every architecture, whatever `hf_judge/ragged/allow_list.py` says. `--write` writes docs/architectures.md.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import logging
import signal
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_judge import StrictVerifier, judged
from hf_judge.ragged import eligibility

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
SECONDS = 40  # for one architecture
LENGTHS = (40, 25, 7)
N_NEW = 16
SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "dim": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_seq_len": 128,
    "max_sequence_length": 128,
    "sliding_window": 16,
    "window_size": 16,
    "attention_window": 16,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 97,
    "laurel_rank": 8,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "rotary_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


class Everything:
    """Contains every name: lets the engine try architectures that it does not serve."""

    def __contains__(self, name: object) -> bool:
        return True


def tiny(model_type: str) -> PreTrainedModel:
    """Make a model of this architecture with random weights of unit gain."""
    default = CONFIG_MAPPING[model_type]()
    known = {*default.to_dict(), *default.attribute_map}
    settings = {name: value for name, value in SMALL.items() if name in known}
    settings = {
        name: value
        for name, value in settings.items()
        if getattr(default, name, None) is not None or value is None or name in ("pad_token_id", "bos_token_id")
    }
    if isinstance(getattr(default, "layer_types", None), list):
        kinds = list(dict.fromkeys(default.layer_types))
        settings["num_hidden_layers"] = max(2, len(kinds))
        settings["layer_types"] = (kinds * 2)[: settings["num_hidden_layers"]]
    config = CONFIG_MAPPING[model_type](**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if sum(parameter.numel() for parameter in model.parameters()) > 30_000_000:
        raise ValueError("not small: a size is set by a field that is not known here")
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 1.0 if id(parameter) in embeddings else 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.requires_grad_(False)


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """Make the draft: the target with noise."""
    draft, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.05
    return draft


def check(model_type: str) -> dict[str, str]:
    """Return what each engine does with this architecture: "equal", or the reason in a few words."""
    found = {"upstream": "", "ragged": "", "served by": ""}
    try:
        target = tiny(model_type)
        draft = noisy(target)
        prompts = [torch.randint(3, 97, (1, n), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
        settings = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
        plain = [
            target.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
            for ids in prompts
        ]
    except Exception as error:  # noqa: BLE001  any failure of upstream's own is a line of the page
        return found | {"served by": f"not built: {short(error)}"}
    drafting = {"assistant_model": draft, "num_assistant_tokens": 4, "judge": StrictVerifier()}
    try:
        model = judged(target)
    except ValueError as error:
        return found | {"served by": f"refused: {short(error)}"}
    try:
        got = [
            model.generate(ids, attention_mask=torch.ones_like(ids), judge_engine="upstream", **drafting, **settings)
            for ids in prompts
        ]
        tokens = [out[0, ids.shape[1] :].tolist() for out, ids in zip(got, prompts, strict=True)]
        found["upstream"] = "equal" if tokens == plain else "differs"
    except Exception as error:  # noqa: BLE001
        found["upstream"] = short(error)
    width = max(LENGTHS)
    batch = torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(ids), (width - ids.shape[1], 0)) for ids in prompts])
    allowed, is_allowed = eligibility.ARCHITECTURES, model_type in eligibility.ARCHITECTURES
    eligibility.ARCHITECTURES = Everything()
    try:
        got = model.generate(batch, attention_mask=mask, judge_engine="ragged", **drafting, **settings)
        found["ragged"] = "equal" if got[:, width:].tolist() == plain else "differs"
    except Exception as error:  # noqa: BLE001
        found["ragged"] = short(error)
    finally:
        eligibility.ARCHITECTURES = allowed
    engines = "both engines" if is_allowed and found["ragged"] == "equal" else "upstream's caches, one prompt at a time"
    found["served by"] = engines if found["upstream"] == "equal" else "neither"
    return found


def short(error: Exception) -> str:
    """Return the reason of a refusal, or an error's first line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "cannot serve this call: " in text:
        text = text.partition("cannot serve this call: ")[2].partition("; use judge_engine")[0]
    return text.replace("|", "/")[:110]


def page(rows: dict[str, dict[str, str]]) -> str:
    """Return the text of docs/architectures.md."""
    lines = [
        f"| `{name}` | {row['served by']} | {row['upstream'] or '-'} | {row['ragged'] or '-'} |"
        for name, row in rows.items()
    ]
    served = sum(row["served by"] == "both engines" for row in rows.values())
    one = sum(row["served by"].startswith("upstream's") for row in rows.values())
    return f"""# Architectures

Written by `python benchmarks/architectures.py --write` on {datetime.date.today()} with transformers
{transformers.__version__}: each causal language model of transformers ({len(rows)}), built tiny with random weights.
"equal": strict verification gave the tokens of plain greedy decoding, on upstream's caches for each of three prompts,
on the ragged engine for the three as a padded batch.

Both engines serve {served}; {one} more are served by upstream's caches, one prompt at a time. The allow-list of the
ragged engine stands in `hf_judge/ragged/allow_list.py`. Variants of a listed architecture that change attention or
positions (sliding windows, ALiBi, longrope, ...) are recognised by their config and go to upstream's caches.

| architecture | served by | upstream's caches | ragged engine, allow-list aside |
|---|---|---|---|
{chr(10).join(lines)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="TYPE", help="these architectures alone")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = {}

    def too_long(number, frame):
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    for name in args.only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        signal.alarm(SECONDS)
        try:
            rows[name] = check(name)
        except TimeoutError as error:
            rows[name] = {"served by": f"not built: {error}", "upstream": "", "ragged": ""}
        signal.alarm(0)
        print(f"{name:28} {rows[name]['served by']:42} {rows[name]['upstream']:32} {rows[name]['ragged']}", flush=True)
    if args.write:
        PAGE.write_text(page(rows), encoding="utf-8")
    tried = {name: row for name, row in rows.items() if not row["ragged"].startswith("the target has")}  # by its config
    wrong = [name for name, row in tried.items() if name in eligibility.ARCHITECTURES and row["ragged"] != "equal"]
    if wrong:
        print("on the allow-list, but not equal: " + ", ".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
