"""Two models of one vocabulary, padded to different widths; two tokenizers; near-ties; and heads that stay float32."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_judge import JudgeConfig, JudgeHead, StrictVerifier, judged
from hf_judge.checking.checkers import NumericChecker
from hf_judge.cli import main
from hf_judge.head.compatibility import check_pair, n_shared_tokens
from hf_judge.head.distributions import extra_features
from hf_judge.labelling.greedy import closeness, greedy, greedy_choices
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.labelling.responses import read_jsonl
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.rules.both.kl import KLVerifier
from hf_judge.tiny import HOME
from hf_judge.tiny.world import problems
from hf_judge.upstream.forward import of_width
from hf_judge.verify.round import Candidates, TargetOutputs

TOKENIZER = AutoTokenizer.from_pretrained(HOME / "target")
WIDTHS = [(64, 16), (16, 64), (0, 8), (8, 0)]  # rows behind the last token: of the target, of the draft


def padded(model, more: int, value: float = 0.0):
    """The model with more rows than there are tokens; `value`: how much those rows are like others."""
    model = copy.deepcopy(model)
    n = model.config.vocab_size
    model.resize_token_embeddings(n + more, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[n:] = value
    model.generation_config.pad_token_id = 0
    return model.eval()


def other_words(tokenizer):
    """The tokenizer with two words exchanged."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, special = state["model"]["vocab"], {token["id"] for token in state["added_tokens"]}
    one, two = [word for word, i in sorted(vocab.items(), key=lambda item: item[1]) if i not in special][:2]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    return type(tokenizer.backend_tokenizer).from_str(json.dumps(state))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pair of 64 and 16 rows more than tokens, a draft of other words, prompts with answers, and a head."""
    folder = tmp_path_factory.mktemp("pair")
    for name, more in (("target", 64), ("draft", 16)):
        padded(AutoModelForCausalLM.from_pretrained(HOME / name, dtype=torch.float32), more).save_pretrained(
            folder / name
        )
        TOKENIZER.save_pretrained(folder / name)
    AutoModelForCausalLM.from_pretrained(HOME / "draft").save_pretrained(folder / "other")
    TOKENIZER.save_pretrained(folder / "other")
    other_words(TOKENIZER).save(str(folder / "other" / "tokenizer.json"))
    tasks = [
        {"prompt": [{"role": "user", "content": p.question}], "answer": str(p.answer)} for p in problems(2, seed=5)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    JudgeHead.from_pretrained(HOME / "judge").save_pretrained(folder / "judge")
    row = {"prompt": "Tom has 3 pens.", "response": " Tom has 3 pens left.", "mistakes": []}
    (folder / "labels.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def commands(folder, draft: str, out) -> dict[str, list[str]]:
    pair = ["--target", str(folder / "target"), "--draft", str(folder / draft), "--max-new-tokens", "200"]
    tasks, head = str(folder / "tasks.jsonl"), str(folder / "judge")
    generate = [
        "--model",
        pair[1],
        "--assistant",
        pair[3],
        "--judge",
        head,
        "--prompt",
        "Tom has 3 pens.",
        "--device-map",
    ]
    return {
        "mine": [*pair, "--prompts", tasks, "--output", str(out / "mined.jsonl")],
        "features": [
            *pair[:4],
            "--data",
            str(folder / "labels.jsonl"),
            "--output",
            str(out / "f"),
            "--extra-features",
            "kl",
        ],
        "calibrate": [*pair, "--head", head, "--margin", "1", "--prompts", tasks, "--thresholds", "1.0"],
        "evaluate": [
            *pair,
            "--judge",
            head,
            "--rules",
            "judge=1.0",
            "kl",
            "assisted",
            "--task",
            tasks,
            "--checker",
            "numeric",
        ],
        "bench": [
            *pair[:4],
            "--max-new-tokens",
            "8",
            "--judge",
            head,
            "--task",
            tasks,
            "--checker",
            "numeric",
            "--quick",
        ],
        "generate": [*generate, "cpu", "--max-new-tokens", "8"],
    }


COMMANDS = ("mine", "features", "calibrate", "evaluate", "bench", "generate")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_serves_padded_vocabularies(folder, tmp_path, command, capsys):
    assert main([command, *commands(folder, "draft", tmp_path)[command]]) == 0, capsys.readouterr().err[-300:]


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_other_tokenizers_are_refused_everywhere_with_the_same_words(folder, tmp_path, command, capsys):
    assert main([command, *commands(folder, "other", tmp_path)[command]]) == 2
    said = capsys.readouterr().err.strip().rpartition("\n")[2]
    assert said.startswith("hf-judge: error: the tokenizers disagree (target: ")
    assert said.endswith("must mean the same to the target; choose a draft of the target's family")
    assert list(tmp_path.iterdir()) == []


def test_generate_serves_other_tokenizers_as_upstream_does(folder, tmp_path, capsys):
    assert main(["generate", *commands(folder, "other", tmp_path)["generate"]]) == 0, capsys.readouterr().err[-300:]


def test_check_pair_names_the_word():
    tokenizer = copy.deepcopy(TOKENIZER)
    check_pair(TOKENIZER, tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=rf"id {len(TOKENIZER)} is nothing to the target and '<new>' to the draft"):
        check_pair(TOKENIZER, tokenizer)


@pytest.mark.parametrize(("engine", "n_prompts"), [("ragged", 1), ("ragged", 3), ("upstream", 1)])
@pytest.mark.parametrize("more", WIDTHS)
def test_greedy_tokens_are_those_of_the_target(engine, more, n_prompts):
    target, draft = padded(tiny_model(seed=0), more[0]), padded(tiny_model(seed=1), more[1])
    ids = torch.randint(4, VOCAB, (n_prompts, 9), generator=torch.Generator().manual_seed(3))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
    tokenizers = {"tokenizer": TOKENIZER, "assistant_tokenizer": copy.deepcopy(TOKENIZER)}
    plain = target.generate(ids, **options)
    got = judged(target).generate(
        ids,
        **options,
        **tokenizers,
        assistant_model=draft,
        judge=StrictVerifier(),
        judge_engine=engine,
        num_assistant_tokens=4,
    )
    assert got.tolist() == plain.tolist()


@pytest.mark.parametrize("engine", ["ragged", "upstream"])
@pytest.mark.parametrize("more", WIDTHS)
def test_sampled_tokens_follow_the_target_even_where_padding_is_likely(engine, more):
    """Rows behind the tokens that models do say: every one of them is an id that the other model may lack.

    The second token of 600 samples against the target's own distribution of it: a chi-square of cells with 5 expected
    counts or more, refused beyond 6 standard deviations (false alarms: below one in a million a case).
    """
    torch.manual_seed(0)
    target, draft = padded(tiny_model(seed=0), more[0]), padded(tiny_model(seed=1), more[1])
    for model in (target, draft):  # a padded row is as good as any
        weight = model.get_output_embeddings().weight
        with torch.no_grad():
            weight[VOCAB:] = (
                weight[4 : 4 + len(weight) - VOCAB]
                if len(weight) - VOCAB <= VOCAB - 4
                else torch.cat([weight[4:VOCAB], weight[4 : 4 + len(weight) - 2 * VOCAB + 4]])
            )
    target.generation_config.eos_token_id = draft.generation_config.eos_token_id = None
    ids = torch.arange(5, 12)[None].expand(30 if engine == "ragged" else 1, -1)
    options = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": True, "top_k": 0, "temperature": 0.7,
        "tokenizer": TOKENIZER, "assistant_tokenizer": copy.deepcopy(TOKENIZER), "num_assistant_tokens": 2,
        "assistant_confidence_threshold": 0.0,
    }  # fmt: skip
    counts, n = torch.zeros(VOCAB + more[0]), 600
    for _ in range(n // len(ids)):
        out = judged(target).generate(
            ids, **options, assistant_model=draft, judge=StrictVerifier(), judge_engine=engine
        )
        counts += torch.bincount(out[:, 8], minlength=len(counts))
    with torch.no_grad():
        first = (target(ids[:1]).logits[0, -1] / 0.7).softmax(-1)
        follow = torch.cat([ids[:1].expand(len(first), -1), torch.arange(len(first))[:, None]], dim=1)
        second = (target(follow).logits[:, -1] / 0.7).softmax(-1)
    expected = n * first @ second
    cells = expected >= 5
    seen, due = (
        torch.cat([counts[cells], counts[~cells].sum()[None]]),
        torch.cat([expected[cells], expected[~cells].sum()[None]]),
    )
    seen, due = seen[due > 0], due[due > 0]
    chi_square = ((seen - due) ** 2 / due).sum().item()
    degrees = len(due) - 1
    assert chi_square < degrees + 6 * (2 * degrees) ** 0.5 + 12


def test_words_behind_the_tokenizer_are_never_mined(tmp_path):
    """A draft whose padded rows are likely: what they stand for nobody knows, so they are no swaps."""
    target = AutoModelForCausalLM.from_pretrained(HOME / "target", dtype=torch.float32)
    draft = padded(AutoModelForCausalLM.from_pretrained(HOME / "draft", dtype=torch.float32), 32)
    n = n_shared_tokens(TOKENIZER, target, draft)
    assert n == len(TOKENIZER)
    prompt = TOKENIZER("Tom has 3 pens.").input_ids
    with torch.no_grad():
        weight = draft.get_output_embeddings().weight
        weight[n:] = 1.2 * weight[draft(torch.tensor([prompt])).logits[0, -1].argmax()]
    (free,), (bound,) = (greedy(draft, TOKENIZER, [prompt], [40], n_tokens=limit) for limit in (None, n))
    assert max(free[0]) >= n > max(bound[0])
    ((tokens, _),) = greedy_choices(draft, [(prompt, bound[0])], n_tokens=n)
    assert max(tokens) < n
    tasks = [{"prompt": [{"role": "user", "content": p.question}]} for p in problems(2, seed=5)]
    asked = encode_prompt(TOKENIZER, tasks[0]["prompt"])[1]
    ((said, _),) = greedy(draft, TOKENIZER, [asked], [60], n_tokens=n)
    with torch.no_grad():  # the draft's own choices, a little better: without a bound every swap would be one of them
        chosen = torch.tensor(list(dict.fromkeys(said))[:32])
        weight[n : n + len(chosen)] = 1.2 * weight[chosen]
    mine_swaps(target, draft, TOKENIZER, tasks, NumericChecker(), tmp_path / "rows.jsonl", max_new_tokens=60)
    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    assert rows
    assert all(max(row.response_ids) < n for row in rows)


@pytest.mark.parametrize("more", [0, 3, -3])
def test_kl_is_over_the_tokens_that_both_models_have(more):
    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(1, 2, 8, generator=generator) for _ in range(2))
    ids = torch.tensor([[1, 2]])
    right = extra_features(["kl", "draft_log_prob"], target, ids, draft)
    wide_target = torch.nn.functional.pad(target, (0, max(-more, 0)), value=9.0)  # likely, whatever it stands for
    wide_draft = torch.nn.functional.pad(draft, (0, max(more, 0)), value=9.0)
    filled = of_width(wide_draft, wide_target.shape[-1])
    assert torch.allclose(extra_features(["kl", "draft_log_prob"], wide_target, ids, filled), right)
    scores = torch.cat([wide_target, wide_target[:, :1]], dim=1)
    verifier = KLVerifier(threshold=right[..., 0].max().item() + 0.01, max_confidence=1.0)
    assert int(verifier.verify(Candidates(ids, logits=filled), TargetOutputs(scores, scores, None)).n_accepted) == 2


# --- near-ties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_near_tie_is_measured_in_roundings_of_its_dtype(scale, dtype):
    eps, n = torch.finfo(dtype).eps, 32 if dtype == torch.float32 else 4
    gaps = torch.tensor([0.0, 0.5, 1.5]) * n * eps * scale
    logits = torch.stack([torch.tensor([scale, scale - gap, -torch.inf]) for gap in gaps.double().tolist()])
    assert (closeness(logits, dtype) <= 1).tolist() == [True, True, False]


def test_models_of_small_logits_are_not_all_near_ties(tmp_path):
    """Marked were choices within 1e-4, whatever the logits: of a model whose logits are that small, all of them."""
    pair = [AutoModelForCausalLM.from_pretrained(HOME / name, dtype=torch.float32) for name in ("target", "draft")]
    tasks = [{"prompt": [{"role": "user", "content": p.question}]} for p in problems(4, seed=5)]
    found = []
    for factor in (1.0, 1e-5):
        for model in pair:
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach() * factor)
        output = tmp_path / f"{factor}.jsonl"
        mine_swaps(*pair, TOKENIZER, tasks, NumericChecker(), output, max_new_tokens=100)
        found.append([bool(row.near_tie) for row in read_jsonl(output)])
    assert found[0] == found[1]
    assert not all(found[0])


# --- heads in float32 -----------------------------------------------------------------------------------------------


def head_of(seed: int = 0) -> JudgeHead:
    head = JudgeHead(JudgeConfig(hidden_size=32))
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        head.bias.fill_(0.1234567)
    return head


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to", "type", "default"])
def test_a_head_is_float32_whatever_is_done_to_the_model(tmp_path, cast):
    head, parent = head_of(), torch.nn.Module()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    parent.head, parent.layer = head, torch.nn.Linear(2, 2)
    if cast == "to":
        parent.to(torch.float16)
    elif cast == "type":
        parent.type(torch.bfloat16)
    elif cast == "default":
        torch.set_default_dtype(torch.bfloat16)
        try:
            head = JudgeHead(JudgeConfig(hidden_size=32))
            head.load_state_dict(before)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        getattr(parent, cast)()
    assert cast == "default" or parent.layer.weight.dtype != torch.float32
    for name, value in head.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    assert head(features.bfloat16()).dtype == torch.float32
    assert torch.equal(head(features), head_of()(features))
    head.save_pretrained(tmp_path)
    assert torch.equal(JudgeHead.from_pretrained(tmp_path).weight, before["weight"])


def test_a_head_moves_between_devices_as_a_model_does():
    head = head_of().to("meta").to_empty(device="cpu")
    assert head.weight.device.type == "cpu"
    assert head.to("meta", torch.float16).weight.dtype == torch.float32
