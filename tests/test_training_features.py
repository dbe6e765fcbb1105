"""Features are the states that generation reads, whatever the batch, and survive interruptions."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_labelling_responses import TOKENIZER
from tiny_models import WHOLLY_OFFLOADED
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.greedy import greedy
from hf_judge.labelling.jobs import decode_exactly
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.labelling.tokens import label_rows
from hf_judge.rules import DiversedVerifier
from hf_judge.training import JudgeTrainingArguments, train_judge
from hf_judge.training import extraction as features_module
from hf_judge.training.extraction import INDEX_NAME, FeatureStore, extract_features
from hf_judge.upstream.states import StateReader


def llama(seed=0, width=32):
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=len(TOKENIZER), hidden_size=width, max_position_embeddings=256, **sizes)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a norm of ones would hide pre_norm's difference to post_norm
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


MODEL = llama()


def rows(n=13):
    texts = ["Tom has 12 apples", "Then there are 15 apples left.", "café", "Ana buys 3 more. " * 3]
    made = []
    for i in range(n):
        text = texts[i % 4]
        mistakes = ((1, 3),) if i % 3 == 1 else ()
        made.append(
            LabelledResponse(
                "Q" + " many" * (i % 5) + "<|assistant|>", text, mistakes, source="ab"[i % 2], task_id=str(i)
            )
        )
    return made


def naive(model, hidden_state, made):
    """One forward for each row, without padding; the state read by a hook of the test's own."""
    encoded, _ = label_rows(made, TOKENIZER)
    states, labels, row, position = [], [], [], []
    for tokens in encoded:
        seen = []
        handle = model.model.norm.register_forward_hook(lambda _, args, out, seen=seen: seen.extend([args[0], out]))
        with torch.no_grad():
            model(torch.tensor([tokens.input_ids]))
        handle.remove()
        for i, label in enumerate(tokens.labels):
            if label != -1:
                states.append(seen[0 if hidden_state == "pre_norm" else 1][0, i])
                labels.append(label)
                row.append(tokens.row)
                position.append(i - tokens.n_prompt)
    return torch.stack(states), torch.tensor(labels), torch.tensor(row), torch.tensor(position)


def all_features(store, **kwargs):
    numbers, parts = zip(*store.chunks(chunk_tokens=7, **kwargs), strict=True)
    assert torch.equal(torch.cat(numbers), torch.arange(store.n_tokens))
    return torch.cat(parts)


@pytest.mark.parametrize("hidden_state", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_features_are_the_states_of_the_labelled_tokens(tmp_path, hidden_state, batch_size):
    made = rows()
    store, report = extract_features(
        MODEL, TOKENIZER, made, tmp_path, hidden_state=hidden_state, batch_size=batch_size, shard_bytes=32 * 4 * 20
    )
    assert len(store.index["shards"]) > 2
    assert report.n_labelled == len(made)
    states, labels, row, position = naive(MODEL, hidden_state, made)
    assert torch.allclose(all_features(store), states, atol=1e-5)
    assert torch.equal(store.column("labels").long(), labels)
    assert torch.equal(store.column("row"), row)
    assert torch.equal(store.column("position"), position)
    assert store.n_tokens == report.n_acceptable + report.n_mistaken
    assert [r["source"] for r in store.rows] == [r.source for r in made]


def test_a_feature_is_what_the_judge_reads_at_that_token():
    """The same StateReader as in generation: the state of the token itself, not of the one before it."""
    ids = torch.tensor([TOKENIZER("Tom has 12 apples").input_ids])
    with torch.no_grad(), StateReader(MODEL, "post_norm") as reader:
        outputs = MODEL(**reader.request({"input_ids": ids}, {}))
        state = reader.read(outputs, 1)[0, -1]
    assert torch.allclose(MODEL.lm_head(state), outputs.logits[0, -1], atol=1e-6)


def test_features_of_the_states_before_the_tokens(tmp_path):
    """Each is the state of the position before, and a head that is fitted to them says so."""
    made = rows()
    at, _ = extract_features(MODEL, TOKENIZER, made, tmp_path / "at")
    before, _ = extract_features(MODEL, TOKENIZER, made, tmp_path / "before", state_of="before", batch_size=3)
    assert before.column("position").equal(at.column("position"))
    row, position = at.column("row"), at.column("position")
    follows = (row[1:] == row[:-1]) & (position[1:] == position[:-1] + 1)
    assert follows.sum() > 20
    torch.testing.assert_close(all_features(before)[1:][follows], all_features(at)[:-1][follows])
    assert "state_of" not in at.index["options"]  # features of earlier releases go on
    with pytest.raises(ValueError, match="other data or settings"):
        extract_features(MODEL, TOKENIZER, made, tmp_path / "at", state_of="before")
    with pytest.raises(ValueError, match="state_of must be one of"):
        extract_features(MODEL, TOKENIZER, made, tmp_path / "x", state_of="after")
    fitted = train_judge(before, JudgeTrainingArguments(output_dir=str(tmp_path / "head"), validation_fraction=0.3))
    assert fitted.head.config.state_of == "before"
    assert JudgeHead.from_pretrained(tmp_path / "head").config.state_of == "before"
    DiversedVerifier(head=fitted.head)


def test_states_read_at_the_lm_head_are_complete(tmp_path, monkeypatch):
    """Where the state is taken at the LM head, leaving logits out would leave states out."""
    monkeypatch.setattr("hf_judge.upstream.states._last_state_index", lambda model: None)
    store, _ = extract_features(MODEL, TOKENIZER, rows(), tmp_path)
    assert torch.allclose(all_features(store), naive(MODEL, "post_norm", rows())[0], atol=1e-5)


def test_other_architectures(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=128))
    model.eval()
    store, _ = extract_features(model, TOKENIZER, rows(), tmp_path, batch_size=3)
    single, _ = extract_features(model, TOKENIZER, rows(), tmp_path / "single", batch_size=1)
    assert torch.allclose(all_features(store), all_features(single), atol=1e-5)


def test_a_draft_that_no_extra_feature_needs_is_not_run(tmp_path, monkeypatch):
    draft = llama(1, width=16)
    monkeypatch.setattr(draft, "forward", None)
    store, _ = extract_features(MODEL, TOKENIZER, rows(), tmp_path, draft_model=draft, extra=["entropy"])
    assert store.index["draft_model"] is None
    assert store.width(["entropy"]) == 33


@WHOLLY_OFFLOADED
def test_an_offloaded_target(tmp_path):
    """Its first weights are on disk: the model has no device of its own."""
    MODEL.save_pretrained(tmp_path / "model")
    offloaded = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert offloaded.device.type == "meta"
    store, _ = extract_features(offloaded, TOKENIZER, rows(), tmp_path / "offloaded")
    here, _ = extract_features(MODEL, TOKENIZER, rows(), tmp_path / "here")
    assert torch.equal(all_features(store), all_features(here))
    prefixes, limits = [[5, 6, 7], [8]], [6, 4]
    assert greedy(offloaded, TOKENIZER, prefixes, limits) == greedy(MODEL, TOKENIZER, prefixes, limits)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    made, options = rows(30), {"batch_size": 2, "shard_bytes": 32 * 4 * 20}
    whole, _ = extract_features(MODEL, TOKENIZER, made, tmp_path / "whole", **options)
    n_shards = len(whole.index["shards"])
    assert n_shards > 4
    write, written = features_module.write_together, []

    def failing(contents):
        if len(written) == 5:  # the index and four shards
            raise KeyboardInterrupt
        written.extend(contents)
        write(contents)

    monkeypatch.setattr(features_module, "write_together", failing)
    with pytest.raises(KeyboardInterrupt):
        extract_features(MODEL, TOKENIZER, made, tmp_path / "again", **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not complete: run the same command again"):
        FeatureStore(tmp_path / "again")
    forwards = []
    handle = MODEL.register_forward_pre_hook(lambda *_: forwards.append(1))
    store, report = extract_features(MODEL, TOKENIZER, made, tmp_path / "again", **options)
    handle.remove()
    assert torch.equal(all_features(store), all_features(whole))
    assert 0 < len(forwards) < 15
    assert report.n_rows == 30
    # a finished one is not computed again
    forwards.clear()
    extract_features(MODEL, TOKENIZER, made, tmp_path / "again", **options)
    assert forwards == []


def test_other_data_or_settings_are_not_mixed(tmp_path):
    extract_features(MODEL, TOKENIZER, rows(), tmp_path)
    with pytest.raises(ValueError, match=r"other data or settings \(hidden_state differ"):
        extract_features(MODEL, TOKENIZER, rows(), tmp_path, hidden_state="pre_norm")
    with pytest.raises(ValueError, match="data_hash"):
        extract_features(MODEL, TOKENIZER, rows(7), tmp_path)


def test_shards_hold_what_they_say(tmp_path):
    store, _ = extract_features(MODEL, TOKENIZER, rows(), tmp_path, shard_bytes=32 * 4 * 20)
    sizes = []
    for shard in store.index["shards"]:
        tensors = load_file(tmp_path / shard["file"])
        assert set(tensors) == {"features", "labels", "matched", "row", "position"}
        assert len(tensors["features"]) == shard["n_tokens"]
        sizes.append(shard["n_tokens"])
    assert max(sizes) <= 20 + max(len(r.response) for r in rows())
    assert "file" in json.loads((tmp_path / INDEX_NAME).read_text())["shards"][0]


def test_matched_tokens_are_the_models_own(tmp_path):
    """Its own greedy answer is matched throughout; one token changed is the only one that is not."""
    prompt_ids = TOKENIZER("a b").input_ids
    ids = MODEL.generate(torch.tensor([prompt_ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()
    own = ids[len(prompt_ids) :]
    other = (own[3] + 1) % (MODEL.config.vocab_size - 4) + 4
    swapped = [*own[:3], other]
    made = [
        LabelledResponse("a b", decode_exactly(TOKENIZER, tokens), response_ids=tuple(tokens))
        for tokens in (own, swapped)
    ]
    store, _ = extract_features(MODEL, TOKENIZER, made, tmp_path, batch_size=2)
    row, matched = store.column("row"), store.column("matched").tolist()
    assert [m for m, r in zip(matched, row.tolist(), strict=True) if r == 0] == [True] * int((row == 0).sum())
    assert [m for m, r in zip(matched, row.tolist(), strict=True) if r == 1] == [True, True, True, False]


def test_shuffled_chunks_hold_every_token_once(tmp_path):
    store, _ = extract_features(MODEL, TOKENIZER, rows(), tmp_path, shard_bytes=32 * 4 * 20)
    whole = all_features(store)
    numbers, parts = zip(*store.chunks(chunk_tokens=7, generator=torch.Generator().manual_seed(0)), strict=True)
    numbers = torch.cat(numbers)
    assert not torch.equal(numbers, torch.arange(store.n_tokens))
    assert torch.equal(numbers.sort().values, torch.arange(store.n_tokens))
    assert torch.equal(torch.cat(parts), whole[numbers])


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="hidden_state must be one of"):
        extract_features(MODEL, TOKENIZER, rows(), tmp_path, hidden_state="middle")
    with pytest.raises(ValueError, match=r"no labelled tokens(.|\n)*empty response"):
        extract_features(MODEL, TOKENIZER, [LabelledResponse("Q", "")], tmp_path)
    with pytest.raises(ValueError, match="no features at"):
        FeatureStore(tmp_path)
    (tmp_path / INDEX_NAME).write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        FeatureStore(tmp_path)
    (tmp_path / INDEX_NAME).write_text('{"format_version": 9}')
    with pytest.raises(ValueError, match="format_version 9 is not known"):
        FeatureStore(tmp_path)
