"""What must hold between judge heads and a Hub; each scenario gets the world and a repository name of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

import hub_fixtures as fx
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from loopback_hub import LoopbackHub, Request
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_judge import AutoJudgeModelForCausalLM, JudgeHead, JudgeLlamaForCausalLM, judged

HEAD_FILES = ["adapter_config.json", "adapter_model.safetensors"]
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


class World:
    """A Hub that holds the pair alice/base and alice/draft, and what decoding with them gives."""

    def __init__(self, hub: LoopbackHub, folder: Path):
        self.hub, self.folder = hub, folder
        for path in fx.save_pair(folder / "pair"):
            commit = hub.put(f"alice/{path.name}", {f.name: f.read_bytes() for f in path.iterdir()})
            if path.name == "base":
                self.base_commit = commit
        self.target, self.draft = judged(fx.tiny_target()), fx.noisy_draft(fx.tiny_target())

    def tokens(self, judge, model=None) -> list[int]:
        model = self.target if model is None else model
        out = model.generate(
            input_ids=fx.prompt(), assistant_model=self.draft, judge=judge, max_new_tokens=24, do_sample=False
        )
        return out[0].tolist()

    def empty_cache(self) -> str:
        return tempfile.mkdtemp(dir=self.folder)

    def place(self, repo: str, head: JudgeHead, **settings) -> str:
        """Put a head's two files on the server; the commit."""
        with tempfile.TemporaryDirectory() as folder:
            head.save_pretrained(folder)
            return self.hub.put(repo, {name: Path(folder, name).read_bytes() for name in HEAD_FILES}, **settings)


def head(seed: int = 2, **config) -> JudgeHead:
    return fx.random_head(seed, base_model_name_or_path="alice/base", **config)


def same(one: JudgeHead, other: JudgeHead) -> bool:
    return torch.equal(one.weight, other.weight) and one.config.threshold == other.config.threshold


def refused(kind: type[Exception], pattern: str):
    """The block raises that kind of error, in words that match."""
    return pytest.raises(kind, match=f"(?s){pattern}")


# push and pull


@scenario
def push_and_pull(world, repo):
    for lfs in (False, True):
        world.hub.lfs = lfs
        one = head(3 + lfs, threshold=0.3 + lfs / 10, provenance={"metrics": {"auc": 0.97}, "draft": "alice/draft"})
        commits = len(world.hub.repos[repo].commits) if lfs else 1
        done = one.push_to_hub(repo)
        assert len(world.hub.repos[repo].commits) == commits + 1, "one commit"
        tree = world.hub.tree(repo)
        assert {*HEAD_FILES, "README.md"} < set(tree)
        code = {name for name in tree if name.startswith("custom_generate/")}
        assert code == {f"custom_generate/{name}" for name in ("generate.py", "head_data.py", "requirements.txt")}
        config = json.loads(tree["adapter_config.json"])
        assert (config["base_model_name_or_path"], config["revision"]) == ("alice/base", world.base_commit)
        text = b"\n".join(data for name, data in tree.items() if not name.endswith(".safetensors")).decode()
        for private in (str(world.folder), os.getcwd(), "hf_alice", os.uname().nodename):
            assert private not in text
        world.hub.log.clear()
        again = JudgeHead.from_pretrained(repo)
        assert same(again, one)
        assert again.source == f"{repo}@{done.oid}"
        assert world.hub.downloads() == HEAD_FILES, "exactly the two files"
        world.hub.log.clear()
        assert same(JudgeHead.from_pretrained(repo), one)
        assert [r.method for r in world.hub.log] == ["GET"], "only the commit is asked for again"
        world.hub.log.clear()
        assert same(JudgeHead.from_pretrained(repo, revision=done.oid), one)
        assert world.hub.log == [], "a cached commit needs no network"


@scenario
def a_pushed_card_is_replaced_and_stale_code_removed(world, repo):
    head().push_to_hub(repo)
    world.hub.put(repo, {"README.md": b"---\nlicense: mit\n---\n", "custom_generate/old.py": b"", "notes.txt": b"mine"})
    head().push_to_hub(repo)
    tree = world.hub.tree(repo)
    assert "custom_generate/old.py" not in tree
    assert tree["notes.txt"] == b"mine"
    assert ModelCard(tree["README.md"].decode()).data.base_model == "alice/base"


@scenario
def branches_tags_and_pull_requests(world, repo):
    first, second = head(3), head(4)
    first.push_to_hub(repo, commit_message="the first", private=True)
    assert world.hub.repos[repo].private
    assert "the first" in world.hub.repos[repo].titles.values()
    HfApi().create_tag(repo, tag="v1")
    second.push_to_hub(repo, revision="next")
    assert same(JudgeHead.from_pretrained(repo), first)
    assert same(JudgeHead.from_pretrained(repo, revision="v1"), first)
    assert same(JudgeHead.from_pretrained(repo, revision="next"), second)
    done = second.push_to_hub(repo, create_pr=True)
    assert done.pr_url.endswith("/discussions/1")
    assert same(JudgeHead.from_pretrained(repo), first)
    assert same(JudgeHead.from_pretrained(repo, revision="refs/pr/1"), second)


@scenario
def subfolders(world, repo):
    with tempfile.TemporaryDirectory() as folder:
        head(5).save_pretrained(folder)
        world.hub.put(repo, {f"heads/five/{name}": Path(folder, name).read_bytes() for name in HEAD_FILES})
    assert same(JudgeHead.from_pretrained(repo, subfolder="heads/five"), head(5))
    with refused(OSError, "holds no judge head.*adapter_config.json.*pass subfolder="):
        JudgeHead.from_pretrained(repo)
    for folder in ("../x", "/etc", "a/../../b", "a\\b", "c:"):
        with refused(ValueError, "subfolder must be a relative path without"):
            JudgeHead.from_pretrained(repo, subfolder=folder)
    with refused(ValueError, "revision must be a relative path without"):
        JudgeHead.from_pretrained(repo, revision="../../x")


@scenario
def what_may_not_be_published(world, repo):
    broken = head()
    broken.weight.data[0, 0] = float("nan")
    home = str(Path.home() / "x" / "y")
    cases = [
        (broken, "NaN or infinite"),
        (fx.random_head(base_model_name_or_path=str(world.folder)), "must be the Hub id of the target"),
        (fx.random_head(), "must be the Hub id of the target"),
        (head(provenance={"token": "hf_" + "a" * 34}), r"would publish a token \(hf_aaa\.\.\.\)"),
        (head(provenance={"data": f"{home}/rows.jsonl"}), "would publish a local path"),
        (head(provenance={"data": {"file": "C:\\Users\\me\\rows.jsonl"}}), "would publish a local path"),
        (head(label="see file:///x"), "would publish a local path"),
        (head(provenance={"where": "10.0.0.7"}), "would publish an address"),
        (head(provenance={"where": "trained on gpu-box-7"}), r"would publish the name of this machine \(gpu-box-7\)"),
    ]
    with mock.patch("socket.gethostname", return_value="gpu-box-7"):
        for bad, message in cases:
            with refused(ValueError, message):
                bad.push_to_hub(repo)
    with refused(OSError, "the commit of the base model could not be found.*'alice/nowhere' was not found"):
        fx.random_head(base_model_name_or_path="alice/nowhere").push_to_hub(repo)
    with refused(ValueError, "repo_id must be user/repo"):
        head().push_to_hub("/tmp/x/y")
    assert repo not in world.hub.repos, "nothing was created"


@scenario
def pushing_without_the_right(world, repo):
    for token, message in (
        ("hf_alice_read", "your token is not allowed"),
        ("hf_bob", "your token is not allowed"),
        ("hf_wrong", "does not accept your token"),
        (False, "does not accept your token"),
    ):
        with refused(OSError, message):
            head(revision=world.base_commit).push_to_hub(repo, token=token)
    assert repo not in world.hub.repos


# every way of loading


@scenario
def peft_and_transformers_load_from_the_hub(world, repo):
    one = head(provenance={"draft": "alice/draft"})
    one.push_to_hub(repo)
    expected, plain = world.tokens(one), world.tokens(False)
    assert expected != plain
    base = AutoModelForCausalLM.from_pretrained("alice/base")
    world.hub.log.clear()
    assert world.tokens(None, PeftModel.from_pretrained(base, repo)) == expected
    assert world.tokens(None, AutoPeftModelForCausalLM.from_pretrained(repo)) == expected
    assert world.tokens(None, AutoModelForCausalLM.from_pretrained(repo)) == expected
    assert world.tokens(None, AutoJudgeModelForCausalLM.from_pretrained("alice/base", judge=repo)) == expected
    model = JudgeLlamaForCausalLM.from_pretrained("alice/base")
    assert world.tokens(None, model) == plain
    model.load_adapter(repo)
    assert world.tokens(None, model) == expected
    assert not [path for path in world.hub.downloads() if path.startswith("custom_generate")], "no code was fetched"


@scenario
def a_commit_between_check_and_load_cannot_slip_in(world, repo):
    """A Judge class loads the very files that it checked."""
    world.place(repo, head(3))
    model = JudgeLlamaForCausalLM.from_pretrained("alice/base")
    from safetensors.torch import load, save

    tensors = load(world.hub.tree(repo)["adapter_model.safetensors"])
    hostile = save(tensors | {"base_model.model.model.norm.weight": torch.full((fx.WIDTH,), 9.0)})
    before = model.model.norm.weight.clone()

    def commit_after_weights(request: Request):
        if request.method == "GET" and request.path.endswith("adapter_model.safetensors"):
            world.hub.fault = None
            world.hub.put(repo, {"adapter_model.safetensors": hostile})

    world.hub.fault = commit_after_weights
    model.load_adapter(repo)
    assert world.hub.tree(repo)["adapter_model.safetensors"] == hostile, "the commit landed"
    assert torch.equal(model.model.norm.weight, before)
    assert same(model.active_judge_head(), head(3))


@scenario
def adapters_of_other_kinds_load_as_before(world, repo):
    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(fx.tiny_target(), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        lora.save_pretrained(folder)
        world.hub.put(repo, {f.name: f.read_bytes() for f in Path(folder).iterdir()})
    model = JudgeLlamaForCausalLM.from_pretrained("alice/base")
    model.load_adapter(repo)
    assert torch.equal(model(fx.prompt()).logits, lora(fx.prompt()).logits)


@scenario
def a_saved_judge_model_comes_back_from_the_hub(world, repo):
    model = AutoJudgeModelForCausalLM.from_pretrained("alice/base", judge=head())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}
    assert {"judge/adapter_config.json", "judge/adapter_model.safetensors"} < set(files)
    world.hub.put(repo, files)
    for again in (AutoJudgeModelForCausalLM.from_pretrained(repo), JudgeLlamaForCausalLM.from_pretrained(repo)):
        assert world.tokens(None, again) == world.tokens(head())
    assert AutoJudgeModelForCausalLM.from_pretrained(repo, judge=False).default_judge is None


@scenario
def a_pushed_judge_model_keeps_its_judge(world, repo):
    for i, push in enumerate((
        lambda model, name, folder: model.push_to_hub(name),
        lambda model, name, folder: model.save_pretrained(
            folder, push_to_hub=True, repo_id=name, commit_message="with its judge"
        ),
    )):  # fmt: skip
        model, name = AutoJudgeModelForCausalLM.from_pretrained("alice/base", judge=head()), f"{repo}-{i}"
        with tempfile.TemporaryDirectory() as folder:
            push(model, name, folder)
        assert {"judge/adapter_config.json", "judge/adapter_model.safetensors"} < set(world.hub.tree(name))
        again = AutoJudgeModelForCausalLM.from_pretrained(name)
        assert world.tokens(None, again) == world.tokens(head())
    assert "with its judge" in world.hub.repos[name].titles.values()


@scenario
def pipelines_take_a_repository(world, repo):
    world.place(repo, head())
    tokenizer = AutoTokenizer.from_pretrained("alice/base")
    text = tokenizer.decode(fx.prompt()[0])
    expected = tokenizer.decode(world.tokens(head())[10:])
    options = {"max_new_tokens": 24, "do_sample": False, "return_full_text": False}
    pipe = pipeline("text-generation", model=repo, assistant_model=world.draft, device="cpu")
    assert pipe(text, **options)[0]["generated_text"] == expected
    model = AutoJudgeModelForCausalLM.from_pretrained("alice/base")
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, assistant_model=world.draft, judge=repo)
    assert pipe([text], **options)[0][0]["generated_text"] == expected


# the memory


@scenario
def a_loop_needs_no_network_and_no_disk(world, repo):
    world.place(repo, head(3))
    expected = world.tokens(head(3))
    assert world.tokens(repo) == expected
    world.hub.log.clear()
    cache = Path(constants.HF_HUB_CACHE)
    cache.rename(cache.with_suffix(".away"))
    try:
        assert [world.tokens(repo) for _ in range(3)] == [expected] * 3
    finally:
        cache.with_suffix(".away").rename(cache)
    assert world.hub.log == []


@scenario
def a_moved_branch_is_followed_when_asked(world, repo):
    world.place(repo, head(3))
    assert world.tokens(repo) == world.tokens(head(3))
    world.place(repo, head(4))
    assert world.tokens(repo) == world.tokens(head(3)) != world.tokens(head(4)), "this process keeps its commit"
    assert same(JudgeHead.from_pretrained(repo), head(4))
    assert world.tokens(repo) == world.tokens(head(4))
    changed = JudgeHead.from_pretrained(repo)
    changed.weight.data.zero_()
    assert world.tokens(repo) == world.tokens(head(4)), "a head that a user holds is the user's own"


# who may read


@scenario
def private_repositories(world, repo):
    world.place(repo, head(), private=True)
    assert same(JudgeHead.from_pretrained(repo, cache_dir=world.empty_cache()), head())
    assert same(JudgeHead.from_pretrained(repo, token="hf_alice", cache_dir=world.empty_cache()), head())
    for token, message in (
        (False, "was not found, neither as a directory nor on the Hub.*if it is private, log in with `hf auth login`"),
        ("hf_bob", "was not found, or it is private and your token may not read it"),
        ("hf_wrong", "does not accept your token.*hf auth login"),
    ):
        with refused(OSError, message):
            JudgeHead.from_pretrained(repo, token=token, cache_dir=world.empty_cache())


@scenario
def gated_repositories(world, repo):
    world.place(repo, head(), gated="manual")
    for token, message in (
        (False, "is gated and you are not logged in: ask for access.*hf auth login"),
        ("hf_bob", "is gated and your account is not on its list: ask for access"),
    ):
        with refused(OSError, message):
            JudgeHead.from_pretrained(repo, token=token, cache_dir=world.empty_cache())
    world.hub.users["hf_bob"].gates.add(repo)
    assert same(JudgeHead.from_pretrained(repo, token="hf_bob", cache_dir=world.empty_cache()), head())


@scenario
def what_is_not_there(world, repo):
    with refused(OSError, f"'{repo}' was not found, or it is private and your token"):
        JudgeHead.from_pretrained(repo)
    with refused(OSError, f"'{repo}' was not found, neither as a directory"):
        JudgeHead.from_pretrained(repo, token=False)
    world.place(repo, head())
    with refused(OSError, "revision 'v9'.*the repository exists, but has no such branch, tag or commit"):
        JudgeHead.from_pretrained(repo, revision="v9")
    with refused(OSError, "holds no judge head.*adapter_config.json"):
        JudgeHead.from_pretrained("alice/base")
    config = world.hub.tree(repo)["adapter_config.json"]
    world.hub.put(f"{repo}-pickle", {"adapter_config.json": config, "adapter_model.bin": b"\x80\x04."})
    world.hub.log.clear()
    with refused(OSError, r"holds no judge head.*adapter_model.safetensors.*pickles \(\*\.bin\) are not read"):
        JudgeHead.from_pretrained(f"{repo}-pickle")
    assert "adapter_model.bin" not in world.hub.downloads()
    for name in ("a/b/c", "/nowhere/at/all", Path("nowhere"), "bad name", "a" * 5000):
        with refused(ValueError, "the directory does not exist, and it is no repository id"):
            JudgeHead.from_pretrained(name)


# faults


@scenario
def a_server_error_in_the_middle(world, repo):
    """Once: the client tries again. While resolving: an error that says so, or the cached copy."""
    world.place(repo, head())
    seen = []

    def once(request: Request):
        if "/resolve/" in request.path and not seen:
            seen.append(request)
            return 503

    world.hub.fault = once
    assert same(JudgeHead.from_pretrained(repo), head())
    assert seen
    world.hub.fault = lambda request: 500 if request.path.startswith("/api/models") else None
    assert same(JudgeHead.from_pretrained(repo), head()), "the cached copy"
    with refused(OSError, r"could not be reached: the Hub answered with an error \(500\). Try again later"):
        JudgeHead.from_pretrained(repo, cache_dir=world.empty_cache())


@scenario
def a_connection_cut_halfway_through_a_file(world, repo):
    world.hub.lfs = False
    world.place(repo, head())
    for name in HEAD_FILES:
        cache, cuts = world.empty_cache(), []

        def cut(request: Request, name=name, cuts=cuts):
            if request.method == "GET" and request.path.endswith(name) and len(cuts) < 2:
                cuts.append(request)
                return "cut"

        world.hub.fault = cut
        with contextlib.suppress(OSError):  # the client may try again by itself
            assert same(JudgeHead.from_pretrained(repo, cache_dir=cache), head())
        assert cuts
        world.hub.fault = None
        assert same(JudgeHead.from_pretrained(repo, cache_dir=cache), head())
        assert same(JudgeHead.from_pretrained(repo, cache_dir=cache, local_files_only=True), head())


@scenario
def a_file_that_never_arrives_leaves_the_cache_whole(world, repo):
    """A new commit of which only the config arrives: offline, the old head still loads as a whole."""
    cache = world.empty_cache()
    world.place(repo, head(3, threshold=0.3))
    JudgeHead.from_pretrained(repo, cache_dir=cache)
    world.place(repo, head(4, threshold=0.4))

    def forbid_weights(request: Request):
        return 403 if request.path.endswith("adapter_model.safetensors") else None

    world.hub.fault = forbid_weights
    with refused(OSError, repo):
        JudgeHead.from_pretrained(repo, cache_dir=cache)
    world.hub.fault = None
    assert same(JudgeHead.from_pretrained(repo, cache_dir=cache, local_files_only=True), head(3, threshold=0.3))
    assert same(JudgeHead.from_pretrained(repo, cache_dir=cache), head(4, threshold=0.4))
    assert same(JudgeHead.from_pretrained(repo, cache_dir=cache, local_files_only=True), head(4, threshold=0.4))


@scenario
def a_commit_between_the_two_reads(world, repo):
    world.place(repo, head(3, threshold=0.3))

    def commit_after_config(request: Request):
        if request.method == "GET" and request.path.endswith("adapter_config.json"):
            world.hub.fault = None
            world.place(repo, head(4, threshold=0.4))

    world.hub.fault = commit_after_config
    assert same(JudgeHead.from_pretrained(repo), head(3, threshold=0.3)), "both files of the first commit"
    assert same(JudgeHead.from_pretrained(repo), head(4, threshold=0.4))


@scenario
def faults_while_pushing(world, repo):
    """The repository is as it was, and a second try succeeds."""
    head(3).push_to_hub(repo)
    before = world.hub.tree(repo)
    steps = (("POST", "/api/repos/create"), ("POST", "/preupload/"), ("PUT", "/lfs/"), ("POST", "/commit/"))
    for seed, (method, part) in enumerate(steps, start=50):

        def fail(request: Request, method=method, part=part):
            return 400 if request.method == method and part in request.path else None

        world.hub.fault = fail
        with refused(OSError, repo):
            head(seed).push_to_hub(repo)
        assert world.hub.tree(repo) == before, part
        world.hub.fault = None
        head(seed).push_to_hub(repo)
        assert same(JudgeHead.from_pretrained(repo), head(seed))
        before = world.hub.tree(repo)


# processes of their own


def run_python(code: str, *args: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=os.environ | env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@scenario
def offline(world, repo):
    world.place(repo, head(3))
    JudgeHead.from_pretrained(repo)
    with refused(OSError, "'alice/elsewhere' is not in the cache and the network is switched off"):
        JudgeHead.from_pretrained("alice/elsewhere", local_files_only=True)
    world.hub.log.clear()
    code = """
import sys
from hf_judge import JudgeHead
print(JudgeHead.from_pretrained(sys.argv[1]).weight.sum().item())
try:
    JudgeHead.from_pretrained("alice/elsewhere")
except OSError as error:
    print(error)
"""
    total, message = run_python(code, repo, HF_HUB_OFFLINE="1").splitlines()
    assert float(total) == head(3).weight.sum().item()
    assert "'alice/elsewhere' is not in the cache and the network is switched off" in message
    assert world.hub.log == [], "no request at all"


@scenario
def custom_generate(world, repo):
    """Through transformers' own load_custom_generate, on a stock model: the same tokens."""
    one = head(provenance={"draft": "alice/draft"})
    one.push_to_hub(repo)
    model = AutoModelForCausalLM.from_pretrained("alice/base")
    settings = {"trust_remote_code": True, "assistant_model": world.draft, "max_new_tokens": 24, "do_sample": False}
    expected, plain = world.tokens(one), world.tokens(False)
    for more, tokens in (({}, expected), ({"judge": False}, plain), ({"judge_threshold": 1.0}, plain)):
        out = model.generate(fx.prompt(), custom_generate=repo, **settings, **more)
        assert out[0].tolist() == tokens
    assert type(model).__name__ == "LlamaForCausalLM"


@scenario
def custom_generate_without_the_package(world, repo):
    """transformers names what is missing, before any code of the repository runs."""
    head().push_to_hub(repo)
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "hf_judge":
            raise ModuleNotFoundError("No module named 'hf_judge'")
sys.meta_path.insert(0, Missing())
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("alice/base")
try:
    model.generate(custom_generate=sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(" ".join(str(error).split()))
"""
    message = run_python(code, repo, HF_HOME=world.empty_cache())
    assert "not found in your environment: hf_judge. Run `pip install hf_judge`" in message, message


@scenario
def the_command_line(world, repo):
    from hf_judge.cli.commands import main

    folder = tempfile.mkdtemp(dir=world.folder)
    fx.random_head(provenance={"data": "rows"}).save_pretrained(folder)
    prompt = AutoTokenizer.from_pretrained("alice/base").decode(fx.prompt()[0])

    def run(*args: str) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(list(args))
        return code, out.getvalue(), errors.getvalue()

    code, _, errors = run("push", folder, repo)
    assert code == 2
    assert "must be the Hub id of the target" in errors
    code, out, errors = run("push", folder, repo, "--base", "alice/base", "--private", "--commit-message", "a head")
    assert code == 0, errors
    assert f"/{repo}/commit/" in out
    assert world.hub.repos[repo].private
    code, out, errors = run("info", repo)
    assert code == 0, errors
    assert f"judge head for alice/base at {world.base_commit}" in out
    assert f"{repo}@" in out
    models = ("--model", "alice/base", "--assistant", "alice/draft", "--device-map", "cpu")
    code, out, errors = run("generate", *models, "--prompt", prompt, "--judge", repo, "--max-new-tokens", "24")
    assert code == 0, errors
    assert "[" in out, "rescued tokens are marked"
    assert "24 tokens in" in out
    code, _, errors = run("info", "alice/nothing")
    assert code == 2
    assert "hf-judge: error: 'alice/nothing' was not found" in errors


@scenario
def the_card_runs_as_it_stands(world, repo):
    prompt = AutoTokenizer.from_pretrained("alice/base").decode(fx.prompt()[0])
    for provenance in ({"draft": "alice/draft", "example_prompt": prompt}, {"example_prompt": prompt}):
        head(provenance=provenance).push_to_hub(repo)
        card = world.hub.tree(repo)["README.md"].decode()
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(blocks) == 2
        printed = [run_block(block) for block in blocks]
        assert printed[0] == printed[1]
        assert printed[0].startswith(prompt)
        assert len(printed[0]) > len(prompt)


def run_block(block: str) -> str:
    """What a block of a card prints."""
    out = io.StringIO()
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(answers):
            exec(compile(block, "card", "exec"), {"__name__": "card"})
    except Exception:  # noqa: BLE001 - whatever it is, the block is to be shown
        raise AssertionError(f"{block}\n{traceback.format_exc()}\n{answers.getvalue()}") from None
    return out.getvalue()
