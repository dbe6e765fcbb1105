"""More than 200 ways to spoil a good head: every loader refuses them by name and leaves the model as it was."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hub_fixtures as fx
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import save

from hf_judge import JudgeConfig, JudgeHead, judged
from hf_judge.head.files import BIAS_KEY, CONFIG_NAME, MAX_CONFIG_BYTES, WEIGHT_KEY, WEIGHTS_NAME
from hf_judge.modeling.classes import become_judge

ABSURD = {
    "threshold": [7, -0.1, 1.0001, float("nan"), float("inf"), -float("inf"), "0.5", None, True, [0.5], {}, 10**400],
    "hidden_size": [-1, 0, None, "32", 32.0, True, [32], 31, 33, 64, 1 << 20, (1 << 20) + 1, 10**30],
    "draft_hidden_size": [0, -1, "8", 8.0, True, 32, 33, 10**30],
    "extra_features": ["kl", 5, {"kl": 1}, ["kl", "kl"], ["KL"], [None], [["kl"]], ["entropy"] * 10**4],
    "hidden_state": ["", "post-norm", "POST_NORM", None, 1, ["post_norm"], {}, "__import__('os')", "post_norm\0"],
    "format_version": [0, 2, -1, "1", 1.0, True, [1]],
    "label": ["x" * 1_000_000, 1, ["1 = acceptable"], {"a": 1}, True],
    "provenance": ["text", ["a"], 5, {"a": "x" * 300_000}, True],
    "base_model_name_or_path": ["x" * 1_000_000, 5, ["a/b"], {"a": "b"}, True],
    "revision": ["x" * 1_000_000, 5, ["main"], {"a": "b"}],
    "task_type": ["SEQ_CLS", "CAUSAL_LM; rm", 1, ["CAUSAL_LM"], {}, "x" * 1_000_000],
    "peft_version": ["x" * 1_000_000, 5, ["0.21.2"]],
    "inference_mode": ["yes", 1, None],
    "peft_type": ["LORA", "judge", "JUDGE ", "", None, 1, ["JUDGE"], {"value": "JUDGE"}],
    "auto_mapping": [{"base_model_class": "system", "parent_library": "os"}, {}, "os.system", ["os"]],
    "auto_map": [{"AutoModel": "evil.Model"}, "evil.Model"],
    "custom_generate": ["someone/evil", {"a": 1}],
    "custom_pipelines": [{"evil": {"impl": "evil.Pipe"}}],
    "trust_remote_code": [True, "yes"],
}


class Pickled:
    """What a pickle may do: here, leave a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def raw_safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def config_mutations(config: dict) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    for field, values in ABSURD.items():
        for i, value in enumerate(values):
            yield f"config {field} {i}", {CONFIG_NAME: json.dumps(config | {field: value}).encode()}
    for field in ("hidden_size", "peft_type"):
        rest = {key: value for key, value in config.items() if key != field}
        yield f"config without {field}", {CONFIG_NAME: json.dumps(rest).encode()}
    good = json.dumps(config).encode()
    for name, text in {
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "string": b'"JUDGE"',
        "number": b"1",
        "half": good[: len(good) // 2],
        "trailing": good + b"}",
        "not utf-8": b"\xff\xfe" + good,
        "utf-16": good.decode().encode("utf-16-le")[:-1],
        "pickle": pickle.dumps(config),
        "python": b"__import__('os').system('true')",
        "deep": b"[" * 100_000,
        "too large": good[:-1] + b', "x": "' + b"x" * MAX_CONFIG_BYTES + b'"}',
    }.items():
        yield f"config {name}", {CONFIG_NAME: text}
    yield "config missing", {CONFIG_NAME: None}


def weight_mutations(weight: torch.Tensor, bias: torch.Tensor) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    good = {WEIGHT_KEY: weight, BIAS_KEY: bias}

    def made(name: str, tensors: dict):
        return f"weights {name}", {WEIGHTS_NAME: save(tensors)}

    for key, shape in {
        "base_model.model.model.norm.weight": (fx.WIDTH,),
        "base_model.model.lm_head.weight": (fx.VOCAB, fx.WIDTH),
        "base_model.model.model.embed_tokens.weight": (fx.VOCAB, fx.WIDTH),
        "base_model.model.model.layers.0.self_attn.q_proj.weight": (fx.WIDTH, fx.WIDTH),
        "base_model.model.model.layers.1.mlp.down_proj.weight": (fx.WIDTH, 64),
        "model.norm.weight": (fx.WIDTH,),
        "lm_head.weight": (fx.VOCAB, fx.WIDTH),
        "norm.weight": (fx.WIDTH,),
        "base_model.model.judge.judge_head.extra": (1,),
        "base_model.model.judge.judge_head.default.weight": (1, fx.WIDTH),
        "base_model.model.judge.other.weight": (1, fx.WIDTH),
        "judge.judge_head.weight": (1, fx.WIDTH),
        "../../../etc/passwd": (1,),
        "": (1,),
        "x" * 5000: (1,),
    }.items():
        yield made(f"also {key[:60]}", good | {key: torch.full(shape, 9.0)})
        yield made(f"only {key[:60]}", {key: torch.full(shape, 9.0)})
    for key in good:
        yield made(f"without {key}", {k: v for k, v in good.items() if k != key})
        for value in (float("nan"), float("inf"), -float("inf")):
            broken = good[key].clone()
            broken.view(-1)[-1] = value
            yield made(f"{value} in {key}", good | {key: broken})
            if value != value:
                yield made(f"half {value} in {key}", good | {key: broken.half()})
                yield made(f"all {value} in {key}", good | {key: torch.full_like(broken, value)})
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn):
            yield made(f"{dtype} {key}", good | {key: good[key].to(dtype)})
        yield made(f"complex {key}", good | {key: good[key].to(torch.complex64)})
    for shape in (
        (fx.WIDTH,),
        (fx.WIDTH, 1),
        (2, fx.WIDTH),
        (1, fx.WIDTH - 1),
        (1, fx.WIDTH + 1),
        (1, 1, fx.WIDTH),
        (1, 0),
    ):
        yield made(f"weight of shape {shape}", good | {WEIGHT_KEY: torch.zeros(shape)})
    for shape in ((), (2,), (1, 1), (0,), (fx.WIDTH,)):
        yield made(f"bias of shape {shape}", good | {BIAS_KEY: torch.zeros(shape)})
    yield made("nothing", {})
    yield made("far too large", good | {"padding": torch.zeros(200_000)})
    file = save(good)
    for end in (0, 1, 7, 8, 9, len(file) // 4, len(file) // 2, len(file) - 4, len(file) - 1):
        yield f"weights cut at {end}", {WEIGHTS_NAME: file[:end]}
    for more in (1, 4, 100_000):
        yield f"weights with {more} bytes more", {WEIGHTS_NAME: file + b"\0" * more}
    entry = {"dtype": "F32", "shape": [1, fx.WIDTH], "data_offsets": [0, 4 * fx.WIDTH]}
    for name, data in {
        "header length 0": struct.pack("<Q", 0) + file[8:],
        "header length huge": struct.pack("<Q", 2**63) + file[8:],
        "header length past the end": raw_safetensors({WEIGHT_KEY: entry}, length=10**6),
        "header not JSON": raw_safetensors(b"not JSON at all"),
        "header a list": raw_safetensors([entry]),
        "offsets past the end": raw_safetensors({WEIGHT_KEY: entry | {"data_offsets": [0, 10**9]}}),
        "offsets backwards": raw_safetensors({WEIGHT_KEY: entry | {"data_offsets": [128, 0]}}, b"\0" * 128),
        "offsets negative": raw_safetensors({WEIGHT_KEY: entry | {"data_offsets": [-128, 0]}}, b"\0" * 128),
        "shape huge": raw_safetensors({WEIGHT_KEY: entry | {"shape": [2**40, 2**40]}}, b"\0" * 128),
        "shape negative": raw_safetensors({WEIGHT_KEY: entry | {"shape": [-1, -32]}}, b"\0" * 128),
        "dtype unknown": raw_safetensors({WEIGHT_KEY: entry | {"dtype": "PICKLE"}}, b"\0" * 128),
        "a pickle": pickle.dumps(good),
        "a zip": b"PK\x03\x04" + b"\0" * 100,
        "text": b"weights",
    }.items():
        yield f"weights {name}", {WEIGHTS_NAME: data}
    yield "weights missing", {WEIGHTS_NAME: None}


def tensor_entries(file: bytes) -> dict | None:
    """What a safetensors header says about tensors; None: it cannot be read."""
    (size,) = struct.unpack("<Q", file[:8])
    try:
        header = json.loads(file[8 : 8 + size])
    except (ValueError, OverflowError):
        return None
    return {key: value for key, value in header.items() if key != "__metadata__"}


def random_mutations(file: bytes, n: int) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Bytes of the safetensors header overwritten; a header that says the same about the tensors is none."""
    rng = random.Random(0)
    (size,) = struct.unpack("<Q", file[:8])
    for i in range(n):
        data = bytearray(file)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(8 + size)] = rng.randrange(256)
        if tensor_entries(bytes(data)) != tensor_entries(file):
            yield f"weights header fuzz {i}", {WEIGHTS_NAME: bytes(data)}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    base = fx.save_pair(folder)[0]
    fx.random_head(base_model_name_or_path=str(base)).save_pretrained(folder / "head")
    return folder / "head"


@pytest.fixture(scope="module")
def corpus(good, tmp_path_factory) -> list[tuple[str, Path]]:
    """(name, folder) of every spoilt head, pickles among them."""
    config = json.loads((good / CONFIG_NAME).read_text())
    head = JudgeHead.from_pretrained(good)
    root = tmp_path_factory.mktemp("hostile")
    mutations = [
        *config_mutations(config),
        *weight_mutations(head.weight.detach(), head.bias.detach()),
        *random_mutations((good / WEIGHTS_NAME).read_bytes(), 60),
    ]
    cases = []
    for i, (name, files) in enumerate(mutations):
        folder = root / f"{i:03}"
        shutil.copytree(good, folder)
        for file, data in files.items():
            (folder / file).unlink()
            if data is not None:
                (folder / file).write_bytes(data)
        cases.append((name, folder))
    for suffix in ("bin", "pt"):
        folder = root / suffix
        shutil.copytree(good, folder)
        (folder / WEIGHTS_NAME).unlink()
        torch.save({WEIGHT_KEY: Pickled(str(root / "ran"))}, folder / f"adapter_model.{suffix}")
        cases.append((f"weights only as .{suffix}", folder))
    return cases


def expected_words(name: str) -> str:
    """What a refusal must speak of."""
    part = name.split()[1] if name.startswith("config") else ""
    if part == "hidden_size":
        return "hidden_size|adapter_model.safetensors"  # a width of its own, or one that the tensors do not have
    return part if part in ABSURD else "adapter_config|adapter_model|judge head|config"


def for_peft(corpus) -> list[tuple[str, Path]]:
    """The corpus without the one that says it is LoRA: PEFT then makes a LoRA of it, which is no judge's business."""
    return [(name, folder) for name, folder in corpus if name != "config peft_type 0"]


def refusals(corpus, load) -> tuple[list[str], Counter]:
    """The cases that `load` accepted, and how often which kind of error was raised."""
    accepted, kinds = [], Counter()
    for name, folder in corpus:
        try:
            load(folder)
        except (ValueError, TypeError, OSError, KeyError, RecursionError) as error:
            kinds[type(error).__name__] += 1
        else:
            accepted.append(name)
    return accepted, kinds


def test_our_loader_refuses_every_mutation_by_name(corpus, capsys):
    wrong, kinds = [], Counter()
    for name, folder in corpus:
        with pytest.raises((ValueError, TypeError)) as caught:
            JudgeHead.from_pretrained(folder)
        kinds[f"{name.split()[0]}: {type(caught.value).__name__}"] += 1
        message = str(caught.value)
        if not any(word in message for word in expected_words(name).split("|")) or len(message) > 2000:
            wrong.append((name, message[:200]))
    with capsys.disabled():
        print(f"\nhostile adapters: {len(corpus)} mutations of a good head, all refused: {dict(kinds)}")
    assert wrong == []
    assert len(corpus) >= 200


def test_config_from_pretrained_refuses_every_mutation(corpus):
    accepted, kinds = refusals(corpus, lambda folder: JudgeConfig.from_pretrained(str(folder)))
    assert accepted == []
    assert set(kinds) == {"ValueError", "TypeError"}


def state(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model, before) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in before)


def test_peft_models_refuse_every_mutation(corpus):
    model = fx.tiny_target()
    before = state(model)
    accepted, _ = refusals(for_peft(corpus), lambda folder: PeftModel.from_pretrained(model, folder))
    assert accepted == []
    assert unchanged(model, before)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_auto_peft_models_refuse_mutations(corpus):
    """A sample: each of them loads the base model first."""
    accepted, _ = refusals(for_peft(corpus)[::6], lambda folder: AutoPeftModelForCausalLM.from_pretrained(folder))
    assert accepted == []


def test_judge_classes_refuse_every_mutation(corpus):
    model = fx.tiny_target()
    become_judge(model)
    before = state(model)
    accepted, _ = refusals(for_peft(corpus), lambda folder: model.load_adapter(str(folder)))
    assert accepted == []
    assert unchanged(model, before)


def test_no_pickle_ran(corpus):
    assert not (corpus[0][1].parent / "ran").exists()


@pytest.mark.parametrize("subfolder", ["..", "../good", "/", "/etc", "a/../..", "a\\..\\b", "c:\\x", "a\0b"])
def test_paths_stay_inside(good, subfolder):
    for load in (
        lambda: JudgeHead.from_pretrained(good, subfolder=subfolder),
        lambda: JudgeConfig.from_pretrained(good, subfolder=subfolder),
        lambda: judged(fx.tiny_target()).load_adapter(str(good), adapter_kwargs={"subfolder": subfolder}),
    ):
        with pytest.raises(ValueError, match="subfolder must be a relative path without"):
            load()


def test_the_good_head_still_loads(good):
    """Or the tests above would prove nothing."""
    head = JudgeHead.from_pretrained(good)
    model = PeftModel.from_pretrained(fx.tiny_target(), good).get_base_model()
    assert torch.equal(model.active_judge_head().weight, head.weight)
    model = judged(fx.tiny_target())
    model.load_adapter(str(good))
    assert torch.equal(model.active_judge_head().weight, head.weight)
