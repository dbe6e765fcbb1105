"""Whether judged generation works here: versions, devices, a pair of models, and a self-check on these very models.

Every check ends in one sentence, and a remedy where it found something. Nothing here prints.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
from dataclasses import dataclass, field

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.bench.formula import expected_accepted, predicted_speedup
from hf_judge.bench.run import measure_costs
from hf_judge.evaluation.answers import Pair
from hf_judge.head.compatibility import doubts
from hf_judge.head.judge_head import JudgeHead
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM
from hf_judge.ragged.model import PREFILL_CHUNK
from hf_judge.tiny.pair import load_pair
from hf_judge.upstream.devices import input_device
from hf_judge.upstream.generation import disagreement, tokenizer_arguments
from hf_judge.upstream.states import StateReader
from hf_judge.upstream.versions import asked_for_by_transformers
from hf_judge.verify.rule import StrictVerifier

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "huggingface-hub", "safetensors")
LENGTHS = (4, 8, 16, 32)  # drafted tokens per round whose cost is measured
N_NEW, N_DRAFTED = 24, 5
TIE = 16  # two logits this many units in the last place apart (of the largest one) are a tie
# relative distance of hidden states that two orders of summation explain
STATE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TEXT = (
    "A judge reads a draft and says of each token whether it is acceptable. Ana has 17 coins, finds 5 more and gives 3 "
    "away; how many has she left? The quick brown fox jumps over the lazy dog, twice a day, except on Sundays. "
)


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: of the check, one word or two.
        status: "ok", "warning" (usable, but) or "problem" (not usable).
        message: one sentence.
        remedy: what to do about it; None where there is nothing to do.
    """

    name: str
    status: str
    message: str
    remedy: str | None = None


@dataclass
class Diagnosis:
    """Everything that the doctor found; `json()` gives it as JSON values."""

    checks: list[Check] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    engine: str | None = None  # "ragged" or "upstream": what serves a batch of prompts with this pair
    engine_reason: str | None = None  # why not the ragged one
    self_check: dict[str, dict] = field(default_factory=dict)  # by engine
    costs: dict = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether no check found a problem."""
        return all(check.status != PROBLEM for check in self.checks)

    def json(self) -> dict:
        """All fields, and `usable`."""
        return dataclasses.asdict(self) | {"usable": self.usable}


def diagnose(
    target: str | None = None,
    draft: str | None = None,
    judge: str | None = None,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
) -> Diagnosis:
    """Check this environment, and a pair of models on it.

    Args:
        target, draft: Hub ids or directories; no target: the embedded pair.
        judge: Hub id or directory of a head.
        dtype, device_map: of both models, as `from_pretrained`.
    """
    found = Diagnosis()
    found.versions = check_versions(found.checks)
    check_devices(found.checks)
    models = _Models.load(found.checks, target, draft, judge, dtype=dtype, device_map=device_map)
    if models is None:
        return found
    check_tokenizers(found.checks, models)
    check_head(found.checks, models)
    if found.usable:
        check_engines(found, models)
    if found.usable and models.draft is not models.target:
        check_costs(found, models)
    return found


def check_versions(checks: list[Check]) -> dict[str, str]:
    """Compare what is installed with what was tested.

    Returns:
        Version of each package, and of Python.
    """
    installed = {"python": platform.python_version(), "hf-judge": importlib.metadata.version("hf-judge")}
    ranges = {}
    for requirement in map(Requirement, importlib.metadata.requires("hf-judge") or ()):
        if requirement.marker is None:
            ranges[requirement.name] = requirement.specifier
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            checks.append(
                Check(package, PROBLEM, f"{package} is not installed", f"pip install '{package}{ranges[package]}'")
            )
            continue
        release = Version(Version(installed[package]).base_version)
        if package == "peft" and release < asked_for_by_transformers():
            checks.append(
                Check(
                    "adapters",
                    WARNING,
                    f"transformers' adapter methods ask for peft {asked_for_by_transformers()}, not {release}",
                    "add_adapter() on a model without a judge needs that peft; PeftModel and judge= work as it is",
                )
            )
        if release in ranges[package]:
            checks.append(Check(package, OK, f"{package} {installed[package]} (tested: {ranges[package]})"))
        else:
            checks.append(
                Check(
                    package,
                    WARNING,
                    f"{package} {installed[package]} is not among the tested versions ({ranges[package]})",
                    f"trust it as far as the self-check below goes, or pip install '{package}{ranges[package]}'",
                )
            )
    return installed


def check_devices(checks: list[Check]) -> None:
    """Name the devices and their memory."""
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            text = f"{torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            checks.append(Check(f"cuda:{i}", OK, text))
    elif torch.accelerator.is_available():
        checks.append(Check("accelerator", OK, str(torch.accelerator.current_accelerator())))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in os.sysconf_names else None
    memory = "" if free is None else f", {free / 2**30:.1f} GiB of memory free"
    checks.append(Check("cpu", OK, f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads{memory}"))


@dataclass
class _Models:
    """What the checks of a pair need."""

    target: PreTrainedModel
    draft: PreTrainedModel  # the target itself, where none was given
    tokenizer: PreTrainedTokenizerBase
    draft_tokenizer: PreTrainedTokenizerBase
    head: JudgeHead | None

    @classmethod
    def load(cls, checks, target, draft, judge, *, dtype, device_map) -> _Models | None:
        """Load the pair; None, with a problem noted, where a part of it cannot be had."""
        if target is None:
            if draft is not None or judge is not None:
                checks.append(
                    Check("target", PROBLEM, "a draft or a judge was given without a target", "pass --target")
                )
                return None
            pair = load_pair()
            checks.append(Check("pair", OK, "the embedded pair (--target, --draft and --judge check another one)"))
            return cls(pair.target, pair.draft, pair.tokenizer, pair.tokenizer, JudgeHead.from_pretrained(pair.judge))
        options = {"dtype": dtype} | ({} if device_map is None else {"device_map": device_map})
        steps = {
            "target": (lambda: AutoJudgeModelForCausalLM.from_pretrained(target, **options).eval(), target),
            "tokenizer": (lambda: AutoTokenizer.from_pretrained(target), target),
        }
        if draft is not None:
            steps["draft"] = (lambda: AutoModelForCausalLM.from_pretrained(draft, **options).eval(), draft)
            steps["draft tokenizer"] = (lambda: AutoTokenizer.from_pretrained(draft), draft)
        if judge is not None:
            steps["judge"] = (lambda: JudgeHead.from_pretrained(judge), judge)
        loaded = {name: _loaded(checks, name, load, source) for name, (load, source) in steps.items()}
        if any(part is None for part in loaded.values()):
            return None
        return cls(
            loaded["target"],
            loaded.get("draft", loaded["target"]),
            loaded["tokenizer"],
            loaded.get("draft tokenizer", loaded["tokenizer"]),
            loaded.get("judge"),
        )


def _loaded(checks: list[Check], name: str, load, source: str):
    try:
        part = load()
    except (OSError, ValueError, TypeError, ImportError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        checks.append(
            Check(
                name, PROBLEM, f"{source!r} cannot be loaded: {reason}", f"pass a Hub id or a directory with a {name}"
            )
        )
        return None
    if isinstance(part, PreTrainedModel):
        checks.append(
            Check(name, OK, f"{type(part).__name__}, {str(part.dtype).removeprefix('torch.')}, {part.device}")
        )
    return part


def check_tokenizers(checks: list[Check], models: _Models) -> None:
    """Whether tokenizers and vocabularies agree, and what chats and batches need."""
    target_rows, draft_rows = (model.config.get_text_config().vocab_size for model in (models.target, models.draft))
    size = len(models.tokenizer)
    if disagreement(models.tokenizer, models.draft_tokenizer) is not None:
        checks.append(
            Check(
                "vocabulary",
                WARNING,
                f"the tokenizers disagree (target: {size} tokens, draft: {len(models.draft_tokenizer)})",
                "pass tokenizer= and assistant_tokenizer= to generate(), one prompt at a time; a draft of the "
                "target's family is faster",
            )
        )
    elif size > min(target_rows, draft_rows):
        checks.append(
            Check(
                "vocabulary",
                PROBLEM,
                f"the tokenizer has {size} tokens, the models have {target_rows} (target) and {draft_rows} (draft)",
                "resize_token_embeddings() on both models, or load the tokenizer that belongs to them",
            )
        )
    elif target_rows != draft_rows:
        checks.append(
            Check(
                "vocabulary",
                WARNING,
                f"one tokenizer of {size} tokens, padded to {target_rows} rows (target) and {draft_rows} (draft)",
                f"draft.resize_token_embeddings({target_rows}) gives both the same width",
            )
        )
    else:
        padding = f", padded to {target_rows} rows" if target_rows > size else ""
        checks.append(Check("vocabulary", OK, f"one vocabulary of {size} tokens{padding}"))
    if models.tokenizer.pad_token is None:
        checks.append(
            Check(
                "padding", WARNING, "the tokenizer has no padding token", "for batches: tokenizer.pad_token = eos_token"
            )
        )
    else:
        checks.append(Check("padding", OK, f"padding token {models.tokenizer.pad_token!r}"))
    if models.tokenizer.chat_template is None:
        checks.append(
            Check("chat", WARNING, "the tokenizer has no chat template", "pass prompts as text, not as messages")
        )
    else:
        checks.append(Check("chat", OK, "the tokenizer has a chat template"))


def check_head(checks: list[Check], models: _Models) -> None:
    """Whether the head fits the target: width, base, commit, quantisation, hidden state."""
    if models.head is None:
        checks.append(
            Check("judge", WARNING, "no judge was given", "train one (docs/train-a-judge.md), or pass --judge")
        )
        return
    config = models.head.config
    try:
        models.target.resolve_judge(models.head)
        StateReader(models.target, config.hidden_state)
    except (ValueError, TypeError) as error:
        checks.append(Check("judge", PROBLEM, str(error), "load the target that the head was trained for"))
        return
    for doubt in doubts(models.head, models.target):
        checks.append(Check("judge", WARNING, doubt, "load that target, or measure accuracy with `hf-judge evaluate`"))
    checks.append(
        Check(
            "judge",
            OK,
            f"reads {config.hidden_state} states of width {config.hidden_size}, threshold {config.threshold:g}",
        )
    )


class _FirstRound(StrictVerifier):
    """Strict verification that keeps what the engine passed in the first round.

    Args:
        hidden_state: which state to ask for.
    """

    def __init__(self, hidden_state: str):
        super().__init__()
        self.hidden_state = hidden_state
        self.drafted: torch.Tensor | None = None  # (batch, k) long
        self.lengths: torch.Tensor | None = None  # (batch,) long
        self.hidden: torch.Tensor | None = None  # (batch, k+1, D)

    def verify(self, candidates, rows):
        if self.hidden is None:
            self.drafted, self.hidden = candidates.ids.clone(), rows.hidden.clone()
            self.lengths = candidates.lengths
        return super().verify(candidates, rows)


def check_engines(found: Diagnosis, models: _Models) -> None:
    """Run strict verification on each engine and compare it with plain greedy decoding, token by token.

    Two prompts, one longer than a chunk of the ragged engine's reading, the other shorter and padded. A token that
    differs is a fault unless the target's two best logits tie there.
    """
    prompts = _probe(models)
    plain = [_plain(models, ids) for ids in prompts]
    state = "post_norm" if models.head is None else models.head.config.hidden_state
    runs = {"ragged": [prompts], "upstream": [[ids] for ids in prompts]}
    for engine, batches in runs.items():
        compared = []
        try:
            for batch in batches:
                verifier = _FirstRound(state)
                sequences = _strict(models, batch, verifier, engine)
                for i, ids in enumerate(batch):
                    expected = plain[next(j for j, prompt in enumerate(prompts) if prompt is ids)]
                    compared.append(_compare(models, ids, expected, sequences[i], verifier, i))
        except (ValueError, NotImplementedError) as error:
            if engine != "ragged" or "cannot serve this call" not in str(error):
                found.checks.append(Check(f"{engine} engine", PROBLEM, " ".join(str(error).split())[:300]))
                continue
            found.engine_reason = str(error).partition("cannot serve this call: ")[2].partition("; use judge_engine")[0]
            continue
        found.self_check[engine] = _summary(compared)
        found.checks.append(_verdict(engine, found.self_check[engine], models.target.dtype))
    found.engine = "ragged" if "ragged" in found.self_check else "upstream"
    if found.engine_reason is not None:
        found.checks.append(
            Check(
                "engine",
                WARNING,
                f"the ragged engine cannot serve this pair: {found.engine_reason}",
                "upstream's caches serve it, one prompt at a time",
            )
        )
    else:
        found.checks.append(Check("engine", OK, "the ragged engine serves this pair, batches too"))


def _probe(models: _Models) -> list[torch.LongTensor]:
    """Two prompts, (1, n) long each: one of more than a chunk, and a shorter one; as long as the positions allow."""
    limits = [
        getattr(m.config.get_text_config(), "max_position_embeddings", None) for m in (models.target, models.draft)
    ]
    room = min([limit for limit in limits if limit], default=1 << 20) - N_NEW - N_DRAFTED - 2
    ids = models.tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    n = min(PREFILL_CHUNK + 45, room)
    repeated = ids.repeat(1, -(-n // ids.shape[1]))
    device = input_device(models.target)
    return [repeated[:, :n].to(device), repeated[:, 3 : 3 + max(n // 3, 1)].to(device)]


def _plain(models: _Models, ids: torch.LongTensor) -> list[int]:
    out = models.target.generate(
        ids, attention_mask=torch.ones_like(ids), judge=False, max_new_tokens=N_NEW, **_greedy(models)
    )
    return out[0, ids.shape[1] :].tolist()


def _strict(models: _Models, prompts: list, verifier: _FirstRound, engine: str) -> list[list[int]]:
    width = max(ids.shape[1] for ids in prompts)
    pads = [width - ids.shape[1] for ids in prompts]
    batch = torch.cat([torch.nn.functional.pad(ids, (pad, 0)) for ids, pad in zip(prompts, pads, strict=True)])
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(ids), (pad, 0)) for ids, pad in zip(prompts, pads, strict=True)]
    )
    out = models.target.generate(
        batch,
        attention_mask=mask,
        judge=verifier,
        judge_engine=engine,
        assistant_model=models.draft,
        num_assistant_tokens=N_DRAFTED,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        max_new_tokens=N_NEW,
        **tokenizer_arguments(models.target, models.draft, models.tokenizer, models.draft_tokenizer),
        **_greedy(models),
    )
    return out[:, width:].tolist()


def _greedy(models: _Models) -> dict:
    """Settings under which the model's own ones leave the argmax alone."""
    pad = models.tokenizer.pad_token_id
    neutral = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return neutral | {"pad_token_id": 0 if pad is None else pad}


@dataclass(frozen=True)
class _Comparison:
    n_equal: int  # tokens, up to the first that differs or to the end
    n_expected: int
    gap: float | None  # of the logits, where a token differs
    tie: float  # what counts as a tie there
    state_error: float  # relative


@torch.no_grad()
def _compare(
    models: _Models, ids: torch.LongTensor, expected: list[int], got: list[int], verifier: _FirstRound, row: int
) -> _Comparison:
    n = next((i for i, token in enumerate(expected) if i >= len(got) or got[i] != token), len(expected))
    gap, tie = None, 0.0
    if n < len(expected):
        so_far = torch.cat([ids, ids.new_tensor([expected[:n]])], dim=1)
        logits = models.target(input_ids=so_far, attention_mask=torch.ones_like(so_far)).logits[0, -1].float()
        other = got[n] if n < len(got) else int(logits.topk(2).indices[1])
        gap = float(logits[expected[n]] - logits[other])
        tie = TIE * torch.finfo(models.target.dtype).eps * float(logits.abs().max())
    k = int(verifier.lengths[row]) if verifier.lengths is not None else verifier.drafted.shape[1]
    whole = torch.cat([ids, verifier.drafted[row : row + 1, :k].to(ids.device)], dim=1)
    state = _plain_state(models.target, whole, verifier.hidden_state)[0, -k - 1 :].float()
    mine = verifier.hidden[row, : k + 1].float().to(state.device)
    return _Comparison(n, len(expected), gap, tie, float((mine - state).norm() / state.norm().clamp(min=1e-12)))


def _plain_state(model: PreTrainedModel, ids: torch.LongTensor, hidden_state: str) -> torch.Tensor:
    """The state (1, n, D) of an ordinary forward, caught by a hook where it goes in."""
    if hidden_state != "post_norm":
        with StateReader(model, hidden_state) as reader:  # a hook too, on the final norm
            return reader.read(model(input_ids=ids, attention_mask=torch.ones_like(ids)), ids.shape[1])
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        hook.remove()
    return seen[0]


def _summary(compared: list[_Comparison]) -> dict:
    return {
        "equal": all(c.n_equal == c.n_expected or abs(c.gap) <= c.tie for c in compared),
        "tokens_compared": sum(c.n_equal for c in compared),
        "ties": sum(c.n_equal < c.n_expected and abs(c.gap) <= c.tie for c in compared),
        "largest_gap": max((abs(c.gap) for c in compared if c.gap is not None), default=0.0),
        "state_error": max(c.state_error for c in compared),
    }


def _verdict(engine: str, summary: dict, dtype: torch.dtype) -> Check:
    name, tolerance = f"{engine} engine", STATE_TOLERANCE.get(dtype, 1e-1)
    if not summary["equal"]:
        return Check(
            name,
            PROBLEM,
            f"strict verification gave another token than plain greedy decoding (their logits are "
            f"{summary['largest_gap']:.3g} apart): judged answers would be wrong here",
            "report it with `hf-judge doctor --json`; meanwhile install tested versions or generate without a judge",
        )
    if not summary["state_error"] <= tolerance:  # NaN is not
        return Check(
            name,
            PROBLEM,
            f"the hidden states that a judge reads differ from a plain forward's by {summary['state_error']:.2g} "
            f"(at most {tolerance:g} in this dtype)",
            "report it with `hf-judge doctor --json`; a judge would decide on wrong states here",
        )
    ties = f", {summary['ties']} prompt(s) up to a tie" if summary["ties"] else ""
    return Check(
        name,
        OK,
        f"strict verification equals plain greedy decoding on {summary['tokens_compared']} tokens{ties}; states agree "
        f"within {summary['state_error']:.1g}",
    )


def check_costs(found: Diagnosis, models: _Models) -> None:
    """Measure what a draft step and a verification cost, and say whether drafting can pay."""
    pair = Pair(models.target, models.draft, models.tokenizer, name="doctor")
    costs = measure_costs(pair, _probe(models)[1], LENGTHS, repeats=7)
    c, v = costs["cost_ratio"], {int(m): cost for m, cost in costs["verify_cost"].items()}
    best = {m: predicted_speedup(m, m, c, v[m]) for m in LENGTHS}
    rates = {m: break_even(m, c, v[m]) for m in LENGTHS}
    paying = {m: rate for m, rate in rates.items() if rate is not None}
    longest = max(best, key=best.get)
    found.costs = {
        "c": c,
        "v": {str(m): cost for m, cost in v.items()},
        "break_even_acceptance": {str(m): rate for m, rate in rates.items()},
        "speedup_at_most": {str(m): speedup for m, speedup in best.items()},
    }
    measured = f"a draft step costs {c:.2f} of a target step, verifying {longest} drafted tokens {v[longest]:.2f}"
    if not paying:
        found.checks.append(
            Check(
                "costs",
                WARNING,
                f"{measured}: even a draft that is always accepted gives {best[longest]:.2f}x plain decoding",
                "take a cheaper draft or a bigger target: drafting cannot pay with this pair on this machine",
            )
        )
        return
    cheapest = min(paying, key=paying.get)
    found.checks.append(
        Check(
            "costs",
            OK,
            f"{measured}: drafts of {cheapest} pay where {paying[cheapest]:.0%} of their tokens or more are accepted, "
            f"drafts of {longest} give {best[longest]:.1f}x plain decoding at most",
        )
    )


def break_even(n_drafted: int, cost_ratio: float, verify_cost: float) -> float | None:
    """The share of accepted tokens at which drafting is as fast as plain decoding; None: never.

    Args:
        n_drafted: M, drafted tokens per round.
        cost_ratio: c, one forward of the draft over one of the target.
        verify_cost: v, a forward of M + 1 tokens over one of a single token.
    """
    speed = functools.partial(predicted_speedup, n_drafted=n_drafted, cost_ratio=cost_ratio, verify_cost=verify_cost)
    if speed(n_drafted) <= 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if speed(expected_accepted(middle, n_drafted)) < 1 else (low, middle)
    return high
