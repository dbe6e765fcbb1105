"""Rows in and out of files, and spans of mistakes turned into labels of tokens."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hf_judge.labelling.responses import (
    LabelledResponse,
    data_hash,
    from_dataset,
    load_rows,
    marked,
    read_jsonl,
    summarise,
    write_jsonl,
)
from hf_judge.labelling.tokens import UnlabelledRow, decoded_offsets, label_offsets, label_rows

CORPUS = ["Tom has 12 apples and buys 3 more.", "Then there are 15 apples left.", "naïve café 🍎🍎 für Ana"] * 4
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"


def byte_tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=CHAT)


TOKENIZER = byte_tokenizer()


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer without offsets; every character is a token."""

    def __init__(self, **kwargs):
        self._characters = sorted({c for text in CORPUS for c in text})
        super().__init__(unk_token="?", **kwargs)

    @property
    def vocab_size(self):
        return len(self._characters)

    def get_vocab(self):
        return {c: i for i, c in enumerate(self._characters)}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return self._characters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def row(response="Tom has 12 apples", mistakes=(), prompt="How many? ", **fields):
    return LabelledResponse(prompt, response, mistakes, **fields)


# --- rows and files -------------------------------------------------------------------------------------------------


def test_jsonl_keeps_every_field(tmp_path):
    rows = [
        row(mistakes=((8, 10),), source="people", task_id="a"),
        row(prompt=[{"role": "user", "content": "Hi 🍎"}], scope=((0, 3),), response_ids=(5, 6), near_tie=True),
    ]
    path = tmp_path / "data.jsonl"
    write_jsonl(rows, path)
    assert list(read_jsonl(path)) == rows
    assert data_hash(rows) != data_hash(rows[::-1])


def as_dataset(rows):
    """The rows as a `datasets.Dataset` in which every row has every column."""
    datasets = pytest.importorskip("datasets")
    columns = [asdict(row) for row in rows]
    for values in columns:  # as text: a column of structs would give every row the keys of all
        values["chat_template_kwargs"] = values["chat_template_kwargs"] and json.dumps(values["chat_template_kwargs"])
    return datasets.Dataset.from_list(columns)


def test_dataset_keeps_every_field(tmp_path):
    rows = [row(mistakes=((8, 10),)), row(scope=((0, 3),), response_ids=(5, 6), source="x", near_tie=True)]
    dataset = as_dataset(rows)
    assert list(from_dataset(dataset)) == rows
    dataset.save_to_disk(str(tmp_path / "set"))
    assert load_rows(tmp_path / "set") == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: .*Expecting property name"),
        (b"\xff\xfe", "line 2: expected UTF-8 text, got the byte 0xff at byte 1"),
        (b"[1]", "line 2: expected a JSON object with 'prompt' and 'response', got a list"),
        (b'{"prompt": "a"}', r"line 2: .*missing: \['response'\]"),
        (b'{"prompt": "a", "response": "b", "label": 1}', r"line 2: .*unknown: \['label'\]"),
        (b'{"prompt": "a", "response": "b", "mistakes": [[0, 2]]}', r"line 2: .*span \[0, 2\].*<= 1"),
        (b'{"prompt": "a", "response": "b", "mistakes": [[1, 1]]}', r"line 2: .*span \[1, 1\]"),
        (b'{"prompt": "a", "response": "b", "mistakes": [0, 1]}', r"line 2: .*pairs of whole numbers"),
        (b'{"prompt": "a", "response": null}', "line 2: response must be text"),
        (b'{"prompt": [], "response": "b"}', "line 2: prompt must be text or a list of chat messages"),
        (b'{"prompt": [{"role": "user"}], "response": "b"}', "line 2: a chat message has"),
        (b"[" * 100_000, "line 2: "),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    good = json.dumps({"prompt": "a", "response": "b"}).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        list(read_jsonl(path))
    assert str(path) in str(caught.value)


def test_broken_lines_can_be_skipped_and_are_counted(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{\n\n{"prompt": "a", "response": "c"}\n')
    assert [r.response for r in read_jsonl(path, skip_errors=True)] == ["b", "c"]
    assert f"skipped: {path}, line 2: " in caplog.text
    assert "1 broken lines" in caplog.text


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.jsonl"
    write_jsonl([row()], path)

    def interrupted():
        yield row("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(interrupted(), path)
    assert list(read_jsonl(path)) == [row()]


def test_summary_and_marks():
    rows = [row(mistakes=((8, 10),), source="a"), row(source="b"), row("x", prompt="other", source="b")]
    counts = summarise(rows)
    assert counts["all"] == {
        "rows": 3,
        "prompts": 2,
        "with_mistakes": 1,
        "characters": 35,
        "mistaken_characters": 2,
    }
    assert counts["b"]["with_mistakes"] == 0
    assert marked(rows[0]) == "Tom has [[12]] apples"


# --- labels ---------------------------------------------------------------------------------------------------------


def labels_by_text(rows, tokenizer=TOKENIZER, **options):
    encoded, report = label_rows(rows, tokenizer, **options)
    shown = []
    for tokens in encoded:
        assert all(label == -1 for label in tokens.labels[: tokens.n_prompt])
        pieces = zip(tokens.input_ids[tokens.n_prompt :], tokens.labels[tokens.n_prompt :], strict=True)
        shown.append([(tokenizer.decode([i]), label) for i, label in pieces])
    return shown, report


def test_before_the_mistake_1_mistaken_0_after_it_nothing():
    (shown,), report = labels_by_text([row(mistakes=((8, 10),))])
    text, mistaken = "", []
    for piece, label in shown:
        expected = -1 if len(text) >= 10 else 1 if len(text) + len(piece) <= 8 else 0
        assert label == expected
        text += piece
        mistaken += [piece] if label == 0 else []
    assert text == "Tom has 12 apples"
    assert "".join(mistaken).strip() == "12"
    assert report.n_mistaken == len(mistaken)


def test_after_a_mistake_can_be_labelled_mistaken():
    (shown,), _ = labels_by_text([row(mistakes=((8, 10),))], after_mistake="mistaken")
    assert {label for _, label in shown} == {0, 1}
    assert shown[-1][1] == 0


def test_scope_restricts_labels():
    (shown,), _ = labels_by_text([row(mistakes=((8, 10),), scope=((8, 10),))])
    assert {label for _, label in shown} == {-1, 0}
    (shown,), _ = labels_by_text([row(scope=((0, 3),))])
    assert "".join(piece for piece, label in shown if label == 1) == "Tom"


def test_a_span_that_cuts_a_word_is_counted_and_can_be_skipped():
    cut = row(mistakes=((12, 14),))  # inside "apples", which is one token
    assert " apples" in [TOKENIZER.decode([i]) for i in TOKENIZER(" apples").input_ids]
    (shown,), report = labels_by_text([cut])
    assert (" apples", 0) in shown
    assert report.n_cut_tokens == 1
    shown, report = labels_by_text([cut, row()], on_cut_token="skip")
    assert len(shown) == 1
    assert report.skipped == {"a span cuts a token inside a word": 1}
    # the blank that belongs to a word's token does not count as cutting it
    _, report = labels_by_text([row(mistakes=((11, 17),))], on_cut_token="skip")
    assert report.n_cut_tokens == 0


def test_rows_that_cannot_be_labelled_are_counted_with_their_number():
    rows = [row(), row(""), row("Tom " * 50)]
    encoded, report = label_rows(rows, TOKENIZER, max_length=60)
    assert [tokens.row for tokens in encoded] == [0]
    assert report.n_rows == 3
    assert report.n_labelled == 1
    assert report.first_skipped["empty response"] == 2
    assert report.first_skipped["longer than 60 tokens"] == 3
    with pytest.raises(ValueError, match="after_mistake must be one of"):
        label_rows(rows, TOKENIZER, after_mistake="drop")


def test_a_prompt_that_merges_with_the_response_is_skipped_not_shifted():
    rows = [row("ples left", prompt="Tom has 12 ap")]
    assert TOKENIZER(" apples").input_ids != TOKENIZER(" ap").input_ids + TOKENIZER("ples").input_ids
    encoded, report = label_rows(rows, TOKENIZER)
    assert encoded == []
    (reason,) = report.skipped
    assert "merges the end of the prompt" in reason
    # with the tokens that were really generated there is no such doubt
    given_ids = tuple(TOKENIZER("ples left").input_ids)
    encoded, _ = label_rows([row("ples left", prompt="Tom has 12 ap", response_ids=given_ids)], TOKENIZER)
    assert encoded[0].input_ids[encoded[0].n_prompt :] == list(given_ids)


def test_chat_prompts_end_where_the_template_ends():
    chat = row(prompt=[{"role": "user", "content": "How many apples?"}], mistakes=((8, 10),))
    encoded, _ = label_rows([chat], TOKENIZER)
    prompt = TOKENIZER.decode(encoded[0].input_ids[: encoded[0].n_prompt])
    assert prompt == "<|user|>How many apples?<|assistant|>"
    assert encoded[0].labels[encoded[0].n_prompt] == 1


def test_tokenizers_without_offsets():
    tokenizer = CharacterTokenizer()
    assert not tokenizer.is_fast
    (shown,), _ = labels_by_text([row(prompt="Ana ", mistakes=((8, 10),))], tokenizer)
    assert "".join(piece for piece, label in shown if label == 0) == "12"
    assert [label for _, label in shown] == [1] * 8 + [0] * 2 + [-1] * 7


def test_ids_of_another_text_are_refused():
    with pytest.raises(UnlabelledRow, match="do not decode"):
        decoded_offsets(TOKENIZER, TOKENIZER("Tom has").input_ids, "Ana has")
    encoded, report = label_rows([row(response_ids=tuple(TOKENIZER("Ana").input_ids))], TOKENIZER)
    assert encoded == []
    assert sum(report.skipped.values()) == 1


TEXT = st.text(st.sampled_from("Tomhasple 12ï🍎é.\n"), min_size=1, max_size=40)


@given(data=st.data(), text=TEXT)
@settings(max_examples=150, deadline=None)
def test_labels_are_those_of_the_characters_that_a_token_writes(data, text):
    """Oracle: the bytes of every token, laid end to end over the UTF-8 of the text."""
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    # a prompt that ends in a special token cannot merge with anything
    encoded, _ = label_rows([row(text, ((start, end),), prompt="Q<|assistant|>")], TOKENIZER)
    (tokens,) = encoded
    ids, labels = tokens.input_ids[tokens.n_prompt :], tokens.labels[tokens.n_prompt :]
    byte_of = {c: b for b, c in zip(sorted(range(256)), _byte_alphabet(), strict=True)}
    character_of_byte = [i for i, c in enumerate(text) for _ in c.encode()]
    at, before = 0, True
    for token, label in zip(TOKENIZER.convert_ids_to_tokens(ids), labels, strict=True):
        n = len([byte_of[c] for c in token])
        characters = set(character_of_byte[at : at + n])
        at += n
        mistaken = any(start <= c < end for c in characters)
        before = before and max(characters) < start
        assert label == (0 if mistaken else 1 if before else -1)
    assert at == len(text.encode())


def _byte_alphabet():
    """The characters that stand for bytes 0..255 in byte-level BPE (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(extra)) for b in range(256)]


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_offsets_by_decoding_cover_the_text(text):
    """Tokens cut at random places, as a model may write them, still cover their own characters."""
    ids = [i for c in text for i in TOKENIZER(c, add_special_tokens=False).input_ids]
    offsets = decoded_offsets(TOKENIZER, ids, text)
    assert len(offsets) == len(ids)
    covered = set()
    for start, end in offsets:
        assert 0 <= start <= end <= len(text)
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))


@given(
    cuts=st.sets(st.integers(1, 29), max_size=12),
    spans=st.lists(st.tuples(st.integers(0, 28), st.integers(1, 4)), max_size=3),
)
def test_label_offsets_of_any_tokenisation(cuts, spans):
    edges = [0, *sorted(cuts), 30]
    offsets = list(zip(edges, edges[1:], strict=False))
    mistakes = [(start, min(30, start + length)) for start, length in spans]
    wrong = {c for start, end in mistakes for c in range(start, end)}
    labels = label_offsets(offsets, mistakes)
    for (start, end), label in zip(offsets, labels, strict=True):
        if wrong & set(range(start, end)):
            assert label == 0
        else:
            assert label == (1 if not wrong or end <= min(wrong) else -1)
