"""Read labels of spans and tokens: RAGTruth, TokenHD and AutoJudge's mined tokens.

Layouts: github.com/ParticleMedia/RAGTruth, huggingface.co/datasets/mr233/TokenHD-training-data and
.../mightyneighbor/AutoJudge (read in their documentation). Tokens become spans through the tokenizer that wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from hf_judge.importing.records import Unmatched, field, make_example, question
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.labelling.tokens import UnlabelledRow, decoded_offsets

HALLUCINATED_FROM = 0.5  # a soft label of TokenHD from this on is a mistake


def ragtruth(record: dict, prompts: dict[str, tuple[str, str]]) -> Iterator[LabelledResponse]:
    """Read a line of RAGTruth's response.jsonl.

    Args:
        record: `response` and `labels`, spans with `start`, `end` and their `text`; a span that is `implicit_true`
            (right, although the sources do not say it) is no mistake.
        prompts: (prompt, kind of task) by `source_id`, from source_info.jsonl.
    """
    quality = record.get("quality", "good")
    if quality != "good":
        raise Unmatched(f"the annotators call the response '{quality}'")
    name = str(record.get("source_id"))
    if name not in prompts:
        raise Unmatched("source_info.jsonl lacks its source_id")
    response, spans = field(record, "response", str), []
    for label in field(record, "labels", list):
        start, end, text = (field(label, key, kind) for key, kind in (("start", int), ("end", int), ("text", str)))
        if response[start:end] != text or not text.strip():
            raise Unmatched("the text of a span is not what stands there")
        if not label.get("implicit_true"):
            spans.append((start, end))
    prompt, kind = prompts[name]
    source = f"ragtruth/{kind}"
    yield make_example(question(prompt), response, mistakes=tuple(spans), source=source, task_id=record.get("id"))


def ragtruth_prompts(record: dict) -> tuple[str, tuple[str, str]]:
    """Return source_id, prompt and kind of task of a line of source_info.jsonl."""
    return str(record.get("source_id")), (field(record, "prompt", str), str(record.get("task_type", "unknown")))


def tokenhd(record: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[LabelledResponse]:
    """Read a row of TokenHD: a soft label for each of the `token_ids` of `raw_answer`.

    Args:
        record: the row; an older layout has the prompt's ids too, up to `start_id`.
        tokenizer: the tokenizer of the ids (Qwen3's).
    """
    answer, start = field(record, "raw_answer", str), record.get("start_id") or 0
    ids, weights = field(record, "token_ids", list), field(record, "token_weights", list)
    ids = ids[start:]
    if len(weights) == len(ids) + start:
        weights = weights[start:]
    if len(weights) != len(ids):
        raise Unmatched("there is not one weight for each token")
    if not all(isinstance(weight, int | float) for weight in weights):
        raise Unmatched("a weight is no number")
    offsets = _offsets(tokenizer, ids, answer)
    wrong = [offset for offset, weight in zip(offsets, weights, strict=True) if weight >= HALLUCINATED_FROM]
    asked = question(field(record, "problem", str))
    yield make_example(asked, answer, mistakes=_joined(wrong), source="tokenhd")


def autojudge(record: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[LabelledResponse]:
    """Read an entry of AutoJudge's files: a response after all kept swaps, and the swaps that were tried.

    Each swap is (position, important, target's token, draft's token). Where it is important, the draft's token is a
    mistake after the tokens before it; where not, it stands in the response and is acceptable.

    Args:
        record: the entry; `current_response` holds the ids of prompt and response.
        tokenizer: the target's tokenizer.
    """
    if "skip" in record:
        raise Unmatched("AutoJudge skipped this task")
    ids, swaps = _ids(field(record, "current_response", object)), field(record, "changed_token_indices", list)
    if not swaps:
        raise Unmatched("no swap was tried, so nothing says where the response begins")
    for position, important, target_token, draft_token in swaps:
        here = target_token if important else draft_token
        if not 0 < position < len(ids) or ids[position] != here:
            raise Unmatched("the response does not hold the token that the swap left there")
    start = _response_start(tokenizer, ids, min(swap[0] for swap in swaps))
    prompt = tokenizer.decode(ids[:start], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    begin = tokenizer.bos_token or ""
    more = {"source": "autojudge", "task_id": None if record.get("id") is None else str(record["id"])}
    prompt = prompt.removeprefix(begin) if tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id] else prompt
    last = len(ids)
    while last > start and ids[last - 1] in tokenizer.all_special_ids:
        last -= 1
    wholes = [(ids[start:last], None)]
    wholes += [([*ids[start:position], token], position - start) for position, wrong, _, token in swaps if wrong]
    for tokens, wrong in wholes:
        text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        span = () if wrong is None else (_offsets(tokenizer, tokens, text)[wrong],)
        scope = None if wrong is None else span
        yield make_example(prompt, text, mistakes=span, scope=scope, response_ids=tuple(tokens), **more)


def _ids(value: object) -> list[int]:
    """Return ids of a tensor (1, T) or of a list."""
    ids = value.flatten().tolist() if hasattr(value, "flatten") else value
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise Unmatched("'current_response' holds no token ids")
    return ids


def _response_start(tokenizer: PreTrainedTokenizerBase, ids: list[int], before: int) -> int:
    """Find where the response begins: behind the last opening of an answer before a position.

    The chat template says what opens an answer; without one, a special token and the blanks behind it do.
    """
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": "x"}]
        without, opened = (
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=add) for add in (False, True)
        )
        opening = tokenizer(opened.removeprefix(without), add_special_tokens=False).input_ids
        for at in range(before - len(opening), -1, -1):
            if opening and ids[at : at + len(opening)] == opening:
                return at + len(opening)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    at = next((at + 1 for at in range(before - 1, -1, -1) if ids[at] in special), None)
    if at is None:
        raise Unmatched("the beginning of the response was not found: is this the tokenizer of the labels?")
    while at < before and not tokenizer.decode([ids[at]]).strip():
        at += 1
    return at


def _offsets(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> list[tuple[int, int]]:
    try:
        return decoded_offsets(tokenizer, ids, text)
    except (UnlabelledRow, OverflowError, TypeError, IndexError) as error:
        raise Unmatched(f"the tokens do not spell the text ({error})") from None


def _joined(offsets: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join spans that touch, and leave out empty ones."""
    spans = []
    for start, end in offsets:
        if start == end:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return tuple(spans)
