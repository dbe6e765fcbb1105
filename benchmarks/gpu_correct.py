"""Checks on a GPU (or a CPU, as a rehearsal) that both engines give plain greedy decoding's tokens.

    python benchmarks/gpu_correct.py --json out/correct.json

Random models, a draft that is the target plus noise, a judge that never accepts: any other token than plain greedy's is
a fault unless the target's two best logits tie there. Batches, sampling, a judge that always accepts, compiled with
CUDA graphs, and memory given back. Ends with 1 after a fault.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from pathlib import Path

import torch
from recording import Recording
from replay import random_llama
from transformers import CompileConfig

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead, StrictVerifier
from hf_judge.modeling.keywords import constant_drafts

TIE = 16  # two logits tie if they are this many units in the last place of the largest apart, or fewer
N_DRAFTED, N_PROMPT = 5, 40
SHAPES = {
    "small": {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
              "intermediate_size": 1024, "vocab_size": 32000, "head_dim": 64},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
             "intermediate_size": 128, "vocab_size": 512, "head_dim": 32},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="small")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recording, checks = Recording(args.json), []
    runs = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)]
    for dtype, compiled in runs[:2] if args.no_compile else runs:  # what waits for a compiler comes last
        target = random_llama(SHAPES[args.shapes] | {"max_position_embeddings": 1024}, dtype, device)
        draft = noisy_copy(target)
        for check in checks_of(target, draft, device, args.new_tokens, compiled):
            checks.append({"dtype": str(dtype).removeprefix("torch.")} | check)
            print(checks[-1], flush=True)
            recording.put(checks=checks)
    recording.finish()
    sys.exit(0 if all(check["right"] for check in checks) else 1)


def noisy_copy(target):
    """Return the target plus noise, of which a part is accepted."""
    draft = copy.deepcopy(target)
    generator = torch.Generator(target.device).manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
            weight.add_((0.1 * weight.float().std() * noise).to(weight.dtype))
    return draft


def checks_of(target, draft, device: str, n_new: int, compiled: bool):
    """Yield one result for each way to decode."""
    ways = {"upstream": {"judge_engine": "upstream"}, "ragged": {"judge_engine": "ragged"}}
    if compiled:
        ways = {"ragged, compiled": ways["ragged"] | {"compile_config": CompileConfig()}}
    batches = {n: prompts(n, target.config.vocab_size, device) for n in (1, 8)}
    for name, way in ways.items():
        for n in (1,) if name == "upstream" else (1, 8):
            inputs, judge = batches[n], StrictVerifier()
            settings = way | {"max_new_tokens": n_new, "pad_token_id": 0}
            started = time.perf_counter()
            found = target.generate(**inputs, **constant_drafts(draft, judge, N_DRAFTED), **settings, do_sample=False)
            seconds = time.perf_counter() - started
            differing = [differs(target, inputs, row, found, n_new) for row in range(n)]
            more = {"accepted": judge.stats.matched, "seconds": round(seconds, 2)}
            outcomes = {kind: differing.count(kind) for kind in ("equal", "near-tie", "fault")}
            yield {"check": "greedy", "engine": name, "batch": n, "right": "fault" not in differing} | outcomes | more
            for do_sample in (False, True):
                yield drafts_stand(target, draft, inputs, settings | {"do_sample": do_sample}, name)
    yield memory_given_back(target, draft, batches[8], way | {"max_new_tokens": n_new, "pad_token_id": 0})


def prompts(n: int, vocabulary: int, device: str) -> dict:
    """Return n prompts of different lengths, padded on the left."""
    ids = torch.randint(10, vocabulary, (n, N_PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(n):
        mask[row, : 3 * row] = 0
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


def differs(target, inputs: dict, row: int, found: torch.Tensor, n_new: int) -> str:
    """Compare a row with plain greedy decoding: "equal", "near-tie" where its logits tie, or "fault"."""
    ids = inputs["input_ids"][row : row + 1, int((inputs["attention_mask"][row] == 0).sum()) :]
    plain = target.generate(
        ids, attention_mask=torch.ones_like(ids), judge=False, max_new_tokens=n_new, do_sample=False, pad_token_id=0
    )
    ours, theirs = found[row, N_PROMPT:], plain[0, ids.shape[1] :]
    unequal = (ours != theirs).nonzero()
    if not len(unequal):
        return "equal"
    place = int(unequal[0])
    text = torch.cat([ids[0], theirs[:place]])[None]
    with torch.no_grad():
        logits = target(text).logits[0, -1]
    gap = abs(float(logits[ours[place]]) - float(logits[theirs[place]]))
    top = float(logits.float().abs().max())
    return "near-tie" if gap <= TIE * torch.finfo(target.dtype).eps * top else "fault"


def drafts_stand(target, draft, inputs: dict, settings: dict, name: str) -> dict:
    """Check that a judge that always accepts keeps whole drafts, greedy or sampled."""
    head = JudgeHead(JudgeConfig(hidden_size=target.config.hidden_size, hidden_state="post_norm")).to(target.device)
    with torch.no_grad():
        head.bias.fill_(20.0)
    judge = JudgeCandidateVerifier(head, 0.5)
    torch.manual_seed(0)
    found = target.generate(**inputs, **constant_drafts(draft, judge, N_DRAFTED), **settings)
    in_range = bool(((found >= 0) & (found < target.config.vocab_size)).all())
    stats, n = judge.stats, len(found)
    right = in_range and stats.corrected == 0 and found.shape[1] == N_PROMPT + settings["max_new_tokens"]
    kind = "sampling" if settings["do_sample"] else "always accept"
    return {"check": kind, "engine": name, "batch": n, "right": right, "rescued": stats.rescued}


def memory_given_back(target, draft, inputs: dict, settings: dict) -> dict:
    """Check that ten calls hold no more memory than one."""
    if target.device.type != "cuda":
        return {"check": "memory given back", "right": True, "skipped": "no GPU"}
    held = []
    for _ in range(10):
        target.generate(**inputs, **constant_drafts(draft, StrictVerifier(), N_DRAFTED), **settings)
        gc.collect()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    return {"check": "memory given back", "right": held[-1] <= held[0], "bytes": held}


if __name__ == "__main__":
    main()
