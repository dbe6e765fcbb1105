"""Run by test_ranks.py in every process of a small group: all cases that need one, after a single start.

Writes what each case gave in this process to `<directory>/rank<r>.json`.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from conftest import always_head, noisy_copy, prompt, random_head, tiny_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, StoppingCriteria
from transformers.distributed import DistributedConfig

from hf_judge import AutoJudgeModelForCausalLM, judged
from hf_judge.labelling.jobs import processes
from hf_judge.ragged import backend
from hf_judge.ragged import model as ragged_model

SECONDS = 100  # a collective that takes longer is a hang
ENGINES = ("ragged", "upstream")
PROMPTS = (prompt(0, 12), prompt(1, 7))  # of the two processes, where they differ
LIMITS = (3, 24)
EOS = (37, 43)


class After(StoppingCriteria):
    """Stops when the sequence has `n` tokens: stands for criteria that look at a clock."""

    def __init__(self, n):
        self.n = n

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= self.n])


def batch(lengths=(9, 4, 12)):
    """Prompts padded on the left with token 0."""
    prompts = [prompt(10 + i, n)[0] for i, n in enumerate(lengths)]
    ids = torch.stack([torch.nn.functional.pad(one, (max(lengths) - len(one), 0)) for one in prompts])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class Clock:
    """A clock that goes by the number of looks at it, at another pace in every process."""

    def __init__(self, rank):
        self.looks, self.rank = 0, rank

    def perf_counter(self):
        self.looks += 1
        return self.looks**2 * 1e-3 if self.rank else self.looks * 1e-2


def pre_norm_head():
    """Reads the residual stream, whose scale is not that of normed states."""
    return random_head(hidden_state="pre_norm", scale=0.3)


def answer(target, inputs, draft, head, engine, **kwargs):
    """Tokens, verdicts and target forwards of a call."""
    options = {"max_new_tokens": 20, "do_sample": False, "num_assistant_tokens": 5, "pad_token_id": 0} | kwargs
    out = target.generate(
        **inputs, assistant_model=draft, judge=head, judge_engine=engine, return_dict_in_generate=True, **options
    )
    return {
        "tokens": out.sequences.tolist(),
        "verdicts": out.verdicts.tolist(),
        "forwards": out.judge_stats.target_forwards,
        "rescued": out.judge_stats.rescued,
        "corrected": out.judge_stats.corrected,
    }


def tensor_parallel_cases(target, drafts, alien, head, rank):
    """Name -> what the case gives; the same everywhere, whatever this process alone would do."""
    cases = {}
    for engine in ENGINES:
        for name, draft in drafts.items():
            inputs = {"input_ids": prompt(0)}
            cases[f"greedy/{engine}/{name}"] = answer(target, inputs, draft, head, engine)
            torch.manual_seed(11 + rank)
            sampled = {"do_sample": True, "temperature": 1.2}
            cases[f"sampled/{engine}/{name}"] = answer(target, inputs, draft, head, engine, **sampled)
            cases[f"sampled again/{engine}/{name}"] = answer(target, inputs, draft, head, engine, **sampled)
            cases[f"next draw/{engine}/{name}"] = torch.rand(1).item()
        # a replicated draft that is another one here than in the first process; drafts of unequal lengths, too
        torch.manual_seed(11 + rank)
        mine = alien if rank else drafts["replicated"]
        cases[f"other drafts/{engine}"] = [
            answer(target, {"input_ids": prompt(0)}, mine, head, engine, do_sample=do_sample, **more)
            for do_sample in (False, True)
            for more in ({}, {"assistant_confidence_threshold": 0.3})
        ]
        cases[f"clock/{engine}"] = answer(
            target, {"input_ids": prompt(0)}, drafts["replicated"], head, engine, stopping_criteria=[After(17 + rank)]
        )
    for name, draft in drafts.items():
        with mock.patch.object(backend, "time", Clock(rank)):
            options = {"num_assistant_tokens_schedule": "adaptive", "num_assistant_tokens": 16, "max_new_tokens": 60}
            cases[f"adaptive/{name}"] = answer(target, {"input_ids": prompt(0)}, draft, head, "ragged", **options)
    cases["pre_norm"] = answer(target, {"input_ids": prompt(0)}, drafts["sharded"], pre_norm_head(), "auto")
    cases["batch"] = answer(target, batch(), drafts["replicated"], head, "ragged")
    lookup = {"prompt_lookup_num_tokens": 3}
    cases["lookup"] = answer(target, {"input_ids": prompt(0, 6).repeat(1, 4)}, None, head, "upstream", **lookup)
    return cases


def sharded_cases(target, draft, sharded_draft, head, rank):
    """Name -> what the case gives for this process's own prompt."""
    cases = {}
    for engine in ENGINES:
        for name, own in (
            ("lengths", {"max_new_tokens": LIMITS[rank]}),
            ("end tokens", {"max_new_tokens": 24, "eos_token_id": EOS[rank]}),
            ("one token", {"max_new_tokens": 1 + 8 * rank}),
        ):
            cases[f"{name}/{engine}"] = answer(target, {"input_ids": PROMPTS[rank]}, draft, head, engine, **own)
    with mock.patch.object(ragged_model, "PREFILL_CHUNK", 4):  # three of them in one process, two in the other
        cases["chunks"] = answer(target, {"input_ids": PROMPTS[rank]}, draft, head, "ragged", max_new_tokens=6)
    one = {"input_ids": PROMPTS[rank][:, : 1 + 3 * rank]}
    cases["short prompt"] = answer(target, one, draft, head, "ragged", max_new_tokens=6)
    for name, more in (
        ("sharded draft", {"assistant_model": sharded_draft}),
        ("early exit", {"assistant_early_exit": 1}),
    ):
        try:
            target.generate(PROMPTS[rank], judge=head, max_new_tokens=4, **more)
        except ValueError as error:
            cases[f"refused/{name}"] = str(error)
    return cases


def sharded(model):
    """FSDP2: the layers and the whole."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    rank = dist.get_rank()
    head = random_head()
    split = {"distributed_config": DistributedConfig(tp_size=2)}
    target = AutoJudgeModelForCausalLM.from_pretrained(directory / "target", **split)
    view = judged(AutoModelForCausalLM.from_pretrained(directory / "target", **split))
    drafts = {
        "replicated": noisy_copy(tiny_model()),
        "sharded": AutoModelForCausalLM.from_pretrained(directory / "draft", **split),
    }
    alien = noisy_copy(tiny_model(), noise=0.3, seed=5)
    results = {"shards": list(target.lm_head.weight.to_local().shape)}
    results |= tensor_parallel_cases(target, drafts, alien, head, rank)
    try:
        processes(target)
    except ValueError as error:
        results["jobs"] = str(error)
    results["view"] = answer(view, {"input_ids": prompt(0)}, drafts["sharded"], head, "auto")

    whole = judged(sharded(tiny_model()))  # the Judge class over a sharded model, and a sharded Judge class
    draft, sharded_draft = noisy_copy(tiny_model()), sharded(noisy_copy(tiny_model()))
    results["fsdp"] = sharded_cases(whole, draft, sharded_draft, head, rank)
    judge_first = sharded(judged(tiny_model()))
    inputs = {"input_ids": PROMPTS[rank]}
    results["fsdp judge first"] = answer(judge_first, inputs, draft, always_head(), "auto", max_new_tokens=LIMITS[rank])
    loaded = AutoJudgeModelForCausalLM.from_pretrained(
        directory / "target", distributed_config=DistributedConfig(fsdp_size=2)
    )
    results["fsdp from_pretrained"] = answer(loaded, inputs, draft, head, "auto", max_new_tokens=LIMITS[rank])
    (directory / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
