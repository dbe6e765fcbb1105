"""The embedded pair: what is in the wheel, what it computes, and that it can be made again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_judge import JudgeHead
from hf_judge.tiny import HOME, load_pair
from hf_judge.tiny.world import check_answer, problems

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pair():
    return load_pair(4)


def prompt(pair, problem, **kwargs):
    messages = [{"role": "user", "content": problem.question}]
    return pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **kwargs)


def test_ten_megabytes_in_half_precision():
    files = [f for f in HOME.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) <= 10_000_000
    for name in ("target", "draft"):
        with safe_open(HOME / name / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118


@torch.no_grad()
def test_depth_changes_no_bit(pair):
    deep = load_pair(9)
    assert len(deep.target.model.layers) == deep.target.config.num_hidden_layers == 9
    ids = prompt(pair, problems(1, seed=5)[0], return_tensors="pt")["input_ids"]
    shallow_out = pair.target(ids, use_cache=True)
    deep_out = deep.target(ids, use_cache=True)
    assert torch.equal(shallow_out.logits, deep_out.logits)
    assert deep_out.past_key_values.get_seq_length(8) == ids.shape[1]
    # A step on the cache as well: the appended layers keep keys and values of their own.
    token = shallow_out.logits[:, -1:].argmax(-1)
    after = [
        p.target(token, past_key_values=o.past_key_values).logits for p, o in ((pair, shallow_out), (deep, deep_out))
    ]
    assert torch.equal(*after)


def test_appended_layers_are_run(pair):
    deep, met = load_pair(6), []
    deep.target.model.layers[5].mlp.register_forward_hook(lambda *_: met.append(True))
    deep.target(torch.tensor([[1, 3]]))
    assert met


def test_24_layers_by_default_and_no_fewer_than_trained():
    assert load_pair().target.config.num_hidden_layers == 24
    with pytest.raises(ValueError, match="expected 4 .as trained. or more, received 3"):
        load_pair(3)


def test_loading_takes_no_random_numbers():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load_pair(6)
    assert torch.equal(before, torch.get_rng_state())


def test_dtype():
    pair = load_pair(4, torch.bfloat16)
    assert pair.target.dtype == pair.draft.dtype == torch.bfloat16


def test_prompt_format(pair):
    problem = problems(1, seed=5)[0]
    assert prompt(pair, problem, tokenize=False) == f"<s><|user|>{problem.question}<|assistant|>"
    ids = prompt(pair, problem)["input_ids"]
    assert ids[:2] == pair.tokenizer.convert_tokens_to_ids(["<s>", "<|user|>"])
    assert ids[-1] == pair.tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert pair.tokenizer.decode(ids[2:-1]) == problem.question
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert pair.tokenizer.apply_chat_template(talk, tokenize=False) == "<s><|user|>a<|assistant|>b</s>"


def test_special_tokens_agree(pair):
    assert (pair.tokenizer.pad_token_id, pair.tokenizer.bos_token_id, pair.tokenizer.eos_token_id) == (0, 1, 2)
    assert pair.tokenizer.padding_side == "left"
    for model in (pair.target, pair.draft):
        for config in (model.config, model.generation_config):
            assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
        assert not model.generation_config.do_sample
        assert model.config.vocab_size == len(pair.tokenizer)
    for digit in "0123456789":
        assert len(pair.tokenizer(f"12{digit}").input_ids) == 3


def test_the_head_says_where_it_comes_from(pair):
    config = JudgeHead.from_pretrained(pair.judge).config
    assert config.base_model_name_or_path == "hf_judge/tiny/target"
    assert (config.hidden_size, config.hidden_state, config.label) == (256, "post_norm", "1 = acceptable")
    assert config.provenance["made_by"] == "examples/tiny_pair/make.py"


def test_judged_answers_are_right_longer_and_rescued(pair):
    # The card's figures on 2,000 problems are far from these limits; on 12 a false alarm is rarer than 1 in 1,000.
    asked, stats, right = problems(12, seed=6), [], 0
    for problem in asked:
        ids = prompt(pair, problem, return_tensors="pt")["input_ids"]
        output = pair.target.generate(
            ids,
            assistant_model=pair.draft,
            judge=pair.judge,
            max_new_tokens=256,
            do_sample=False,
            num_assistant_tokens=32,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
            return_dict_in_generate=True,
        )
        stats.append(output.judge_stats)
        right += check_answer(
            problem, pair.tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        )
    total = sum(stats)
    assert right >= 10
    assert total.accepted_per_forward > 10
    assert total.rescued_fraction > 0.05


def test_the_making_runs_from_end_to_end(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, str(ROOT / "examples/tiny_pair/make.py"), "--out", str(tmp_path), "--smoke"],
        check=True, env=environment, capture_output=True, timeout=280,
    )  # fmt: skip
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["problems"] == 2
    assert set(figures["accuracy"]) == {"plain", "draft", "judged"}
    pair = load_pair(5, directory=tmp_path)
    assert pair.target.config.hidden_size == JudgeHead.from_pretrained(pair.judge).config.hidden_size
