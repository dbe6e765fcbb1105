"""Files of EAGLE-3 drafts: both formats give the network that others compute, hostile files are refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from eagle3 import N_DRAFT, random_draft
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, WIDTH, prompt, tiny_model

from hf_judge import judged
from hf_judge.speculators.auto import AutoDraftModel
from hf_judge.speculators.model import Eagle3DraftModel

FLAGS = [{}, {"norm_before_residual": True}, {"norm_before_fc": True}, {"fc_norm": True, "norm_output": True}]


@pytest.fixture(scope="module")
def target():
    return tiny_model()


@pytest.fixture
def folder(tmp_path):
    random_draft().save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def run(draft: Eagle3DraftModel, ids, states, chain):
    """The logits of the last pair, and of a chain of tokens after it, over the draft's own cache."""
    cache, n = draft.new_cache(), ids.shape[1]
    state = draft(ids, draft.fuse(states), torch.arange(n)[None], cache)[:, -1:]
    found = [draft.logits(state)]
    for i, token in enumerate(chain):
        state = draft(torch.tensor([[token]]), state, torch.tensor([[n + i]]), cache)
        found.append(draft.logits(state))
    return torch.cat(found, dim=1)[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_saved_drafts_come_back(tmp_path, target, kind, flags):
    draft = random_draft(kind, n_layers=2, **flags)
    draft.save_pretrained(tmp_path)
    loaded = AutoDraftModel.from_pretrained(tmp_path, target=target)
    states, ids = torch.randn(1, 5, 3 * WIDTH), prompt(1, 5)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, draft.state_dict()[name])
    # the weights lie elsewhere in memory, and matrix products may round differently there
    assert torch.allclose(run(loaded, ids, states, [7, 8]), run(draft, ids, states, [7, 8]), rtol=0, atol=1e-5)
    assert torch.equal(loaded.ids, draft.ids)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_logits_are_those_of_the_speculators_library(tmp_path, target, kind, flags):
    """The reference: `pip install hf-judge[test-speculators]`, which needs an older transformers than others here."""
    eagle3 = pytest.importorskip("speculators.models.eagle3", reason="no reference: install speculators==0.9.0")
    ours = random_draft(kind, n_layers=2, **flags)
    ours.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    config = eagle3.Eagle3SpeculatorConfig(**{k: v for k, v in values.items() if k != "architectures"})
    config.transformer_layer_config._attn_implementation = "eager"
    theirs = eagle3.Eagle3DraftModel(config).eval()
    missing = theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert all("verifier" in key for key in missing.missing_keys)
    n, n_steps, kept = 9, 4, []
    theirs.lm_head.register_forward_hook(lambda module, args, out: kept.append(out))
    ids, states = prompt(1, n), torch.randn(1, n, 3 * WIDTH)
    with torch.no_grad():
        proposed = theirs(states, ids, torch.zeros(1, n, dtype=torch.long), ttt_steps=n_steps)
    loaded = AutoDraftModel.from_pretrained(tmp_path, target=target)
    for at in range(n - n_steps):
        # step s of theirs reads the token s places further, from the state that step s-1 gave
        chain = ids[0, at + 1 : at + n_steps].tolist()
        found = run(loaded, ids[:, : at + 1], states[:, : at + 1], chain)
        expected = torch.stack([kept[step][0, at] for step in range(n_steps)])
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
        assert found.argmax(dim=-1).tolist() == [int(proposed[step][0, at]) for step in range(n_steps)]
    over_target = loaded.of_target(found)
    chosen = theirs.d2t + torch.arange(N_DRAFT)
    assert torch.equal(over_target[:, chosen], found)
    assert bool(torch.isneginf(over_target[:, ~theirs.t2d]).all())


def as_the_authors_save(folder, **config):
    """Turn a folder into the authors' format: names, flat config, and no embedding."""
    values = json.loads((folder / "config.json").read_text())
    layers = values["transformer_layer_config"]
    values = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "draft_vocab_size": N_DRAFT} | config
    (folder / "config.json").write_text(json.dumps(layers | values))

    def rename(tensors):
        for key in [key for key in tensors if key.startswith("layers.0.")]:
            tensors[key.replace("layers.0.", "midlayer.")] = tensors.pop(key)
        del tensors["embed_tokens.weight"]

    change_tensors(folder, rename)


def naive_logits(tensors, embedding, ids, states, n_heads=4, n_kv=2, eps=1e-6):
    """The authors' network, written down from the paper for one sequence: no cache, loops over heads and positions."""

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    def rotate(x, position):
        half = x.shape[-1] // 2
        angles = torch.tensor([position * 10000 ** (-i / half) for i in range(half)])
        a, b = x[:half], x[half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])

    w = {key.removeprefix("midlayer."): value for key, value in tensors.items()}
    residual = states
    read = torch.cat([norm(embedding[ids], w["input_layernorm.weight"]), norm(states, w["hidden_norm.weight"])], dim=-1)
    q, k, v = (read @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    d, out = q.shape[1] // n_heads, []
    for i in range(len(ids)):
        heads = []
        for h in range(n_heads):
            kv = slice(h // (n_heads // n_kv) * d, (h // (n_heads // n_kv) + 1) * d)
            query = rotate(q[i, h * d : (h + 1) * d], i)
            scores = torch.stack([query @ rotate(k[j, kv], j) for j in range(i + 1)]) / math.sqrt(d)
            heads.append(scores.softmax(0) @ v[: i + 1, kv])
        out.append(torch.cat(heads) @ w["self_attn.o_proj.weight"].T)
    states = residual + torch.stack(out)
    x = norm(states, w["post_attention_layernorm.weight"])
    inner = torch.nn.functional.silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)
    states = states + inner @ w["mlp.down_proj.weight"].T
    return states, norm(states, w["norm.weight"]) @ w["lm_head.weight"].T


def test_the_authors_format(folder, target):
    """And the layers to read without a word about them: 2, n/2 and n-3, where the target has so many."""
    as_the_authors_save(folder, eagle_config={"eagle_aux_hidden_state_layer_ids": [-1, 0, 1]})
    draft = AutoDraftModel.from_pretrained(folder, target=target)
    assert draft.eagle_config.aux_layers == (0, 1, 2)
    tensors, embedding = load_file(folder / "model.safetensors"), target.get_input_embeddings().weight
    ids, joined = prompt(2, 5), torch.randn(1, 5, 3 * WIDTH)
    states = joined[0] @ tensors["fc.weight"].T
    chain, expected, tokens = [9, 4, 30], [], ids[0]
    for token in [*chain, None]:
        out, logits = naive_logits(tensors, embedding, tokens, states)
        expected.append(logits[-1])
        if token is not None:
            states, tokens = torch.cat([states, out[-1:]]), torch.cat([tokens, torch.tensor([token])])
    assert torch.allclose(run(draft, ids, joined, chain), torch.stack(expected), rtol=0, atol=1e-5)
    change_config(folder, eagle_config=None)
    deep = tiny_model(num_hidden_layers=8)
    assert AutoDraftModel.from_pretrained(folder, target=deep).eagle_config.aux_layers == (2, 4, 5)
    assert AutoDraftModel.from_pretrained(folder, target=deep, aux_layers=(1, 4, 8)).eagle_config.aux_layers == (
        1,
        4,
        8,
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speculators_model_type": "dflash"}, "'dflash' is not supported"),
        ({"speculators_model_type": None, "architectures": ["LlamaForCausalLM"]}, "is no EAGLE-3 draft"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"tree_attention": 7}, "not understood .tree_attention"),
        ({"draft_vocab_size": 10**12}, "integer from 1 to"),
        ({"draft_vocab_size": "many"}, "integer from 1 to"),
        ({"draft_vocab_size": 39}, "has shape"),
        ({"target_hidden_size": 48}, "width 48, the target's have 32"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 9]}, "from 0 to 2"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1]}, "has shape"),
        ({"eagle_aux_hidden_state_layer_ids": None}, "pass aux_layers="),
        ({"norm_before_fc": True}, "missing: .'input_norm.weight'"),
        ({"norm_before_residual": "yes"}, "true or false"),
        ({"transformer_layer_config": 3}, "must be an object"),
    ],
    ids=str,
)
def test_configs_that_are_refused(folder, target, values, words):
    change_config(folder, **values)
    with pytest.raises(ValueError, match=words):
        AutoDraftModel.from_pretrained(folder, target=target)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 1 << 40}, "integer from 1 to"),
        ({"vocab_size": 128}, "tokens, this target has"),
        ({"num_hidden_layers": 10**6}, "integer from 1 to 16"),
        ({"num_attention_heads": 3}, "multiple of|not valid"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary positions"),
        ({"model_type": "mamba"}, "'mamba' are not supported"),
        ({"hidden_act": "__import__"}, "hidden_act must be"),
        ({"sliding_window": 8}, "sliding window"),
        ({"attention_bias": True}, "missing: .'layers.0.self_attn"),
    ],
    ids=str,
)
def test_layers_that_are_refused(folder, target, values, words):
    layers = json.loads((folder / "config.json").read_text())["transformer_layer_config"]
    change_config(folder, transformer_layer_config=layers | values)
    with pytest.raises(ValueError, match=words):
        AutoDraftModel.from_pretrained(folder, target=target)


def _set(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("fc.weight"), "missing: .'fc.weight'"),
        (_set("evil.weight", torch.zeros(3)), "not understood: .'evil.weight'"),
        (_set("midlayer.hidden_norm.weight", torch.zeros(WIDTH)), "does not hold the tensors"),
        (_set("fc.weight", torch.zeros(WIDTH, WIDTH)), "has shape .32, 32., expected .32, 96."),
        (_set("norm.weight", torch.full((WIDTH,), torch.nan)), "NaN"),
        (_set("lm_head.weight", torch.zeros(N_DRAFT, WIDTH, dtype=torch.int8)), "quantised drafts"),
        (lambda tensors: tensors.pop("d2t"), "'d2t'"),
        (_set("d2t", torch.full((N_DRAFT,), VOCAB)), "beyond the target's vocabulary"),
        (_set("d2t", -torch.arange(N_DRAFT)), "two of the draft's tokens"),
        (_set("d2t", torch.zeros(3, dtype=torch.long)), "must be .40,. integers"),
        (_set("t2d", torch.ones(VOCAB, dtype=torch.bool)), "disagree"),
    ],
)
def test_tensors_that_are_refused(folder, target, change, words):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=words):
        AutoDraftModel.from_pretrained(folder, target=target)


def test_files_that_are_refused(folder, target, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="truncated or damaged"):
        AutoDraftModel.from_pretrained(folder, target=target)
    header = b'{"fc.weight":{"dtype":"F32","shape":[9000000000,96],"data_offsets":[0,3456000000000]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="truncated or damaged"):
        AutoDraftModel.from_pretrained(folder, target=target)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle, which can run code"):
        AutoDraftModel.from_pretrained(folder, target=target)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        AutoDraftModel.from_pretrained(folder, target=target)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no EAGLE-3 draft at"):
        AutoDraftModel.from_pretrained(folder, target=target)
    with pytest.raises(TypeError, match="target must be"):
        AutoDraftModel.from_pretrained(folder, target="meta-llama/Llama-3.1-8B-Instruct")


def test_a_directory_does_as_assistant_model(folder, target):
    ids = prompt(1)
    expected = target.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(
        judged(target).generate(ids, max_new_tokens=12, do_sample=False, assistant_model=str(folder)), expected
    )
